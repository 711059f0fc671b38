#include "region.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

#include "os.h"
#include "policy.h"

static atomic_uint serial; /* makes names unique, so that adjacent regions stay separate in smaps */

static size_t page_size(enum region_pages pages)
{
  return pages == REGION_HUGETLB_1G ? OS_HUGETLB_1G : OS_HUGE_PAGE_SIZE;
}

static int is_hugetlb(enum region_pages pages)
{
  return pages == REGION_HUGETLB_2M || pages == REGION_HUGETLB_1G;
}

static int reserve(struct region *region, size_t size)
{
  const size_t page = page_size(region->pages);
  if (size > SIZE_MAX - page)
    return ENOMEM;
  region->size = (size + page - 1) / page * page;
  return is_hugetlb(region->pages) ? os_reserve_hugetlb(region->size, page, &region->address)
                                   : os_reserve(region->size, &region->address);
}

/* Makes all requests before the first touch, which fixes a page's node and size. */
static int make(struct region *region, size_t size, const struct region_wishes *wishes)
{
  struct policy policy = {.mode = POLICY_PREFERRED};
  if (wishes->node >= 0 && policy_add_node(&policy, (size_t)wishes->node) != 0)
    return ERANGE;
  const int error = reserve(region, size);
  if (error != 0)
    return error;
  char name[32];
  snprintf(name, sizeof name, "hfaccel %u", atomic_fetch_add(&serial, 1));
  region->name_error = os_name(region->address, region->size, name);
  if (wishes->node >= 0)
    region->node_error = os_prefer_nodes(region->address, region->size, policy.nodes, POLICY_MAX_NODES + 1);
  if (region->pages == REGION_THP)
    region->advise_error = os_advise_huge(region->address, region->size);
  if (is_hugetlb(region->pages)) {
    /* A cgroup's limit on huge pages takes effect only at the first touch, and then as SIGBUS. */
    const int refused = os_populate(region->address, region->size);
    if (refused != 0) {
      region_release(region);
      return refused;
    }
  }
  if (wishes->locked)
    region->lock_error = os_lock(region->address, region->size);
  return 0;
}

int region_create(struct region *region, size_t size, const struct region_wishes *wishes)
{
  if (size == 0)
    return EINVAL;
  struct region made = {.pages = wishes->pages};
  int error = make(&made, size, wishes);
  if (error != 0 && is_hugetlb(wishes->pages)) {
    made = (struct region){.pages = REGION_THP, .hugetlb_error = error};
    error = make(&made, size, wishes);
  }
  if (error != 0)
    return error;
  if (made.advise_error != 0)
    made.pages = REGION_PLAIN;
  *region = made;
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
