#include "region.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

#include "os.h"

static atomic_uint serial; /* makes the names differ, so that neighbours stay separate in smaps */

int region_create(struct region *region, size_t size, int huge)
{
  if (size == 0)
    return EINVAL;
  if (size > SIZE_MAX - OS_HUGE_PAGE_SIZE)
    return ENOMEM;
  const size_t whole = (size + OS_HUGE_PAGE_SIZE - 1) / OS_HUGE_PAGE_SIZE * OS_HUGE_PAGE_SIZE;
  void *address;
  const int error = os_reserve(whole, &address);
  if (error != 0)
    return error;
  char name[32];
  snprintf(name, sizeof name, "hfaccel %u", atomic_fetch_add(&serial, 1));
  region->address = address;
  region->size = whole;
  region->name_error = os_name(address, whole, name);
  region->advise_error = huge ? os_advise_huge(address, whole) : 0;
  return 0;
}

int region_populate(const struct region *region, size_t offset, size_t size)
{
  if (offset > region->size || size > region->size - offset)
    return ERANGE;
  /* madvise wants a page-aligned start; widening to the page below stays inside the region. */
  const size_t start = offset - offset % 4096;
  if (size == 0)
    return 0;
  return os_populate((char *)region->address + start, size + (offset - start));
}

int region_release(struct region *region)
{
  if (region->address == NULL)
    return 0;
  const int error = os_release(region->address, region->size);
  if (error == 0)
    region->address = NULL;
  return error;
}
