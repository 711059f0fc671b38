#define _GNU_SOURCE
#include "heap.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os.h"

int heap_owner(char *path, size_t size)
{
  Dl_info info;
  /* dlsym and not &malloc, which could be the address of this module's own stub. */
  void *function = dlsym(RTLD_DEFAULT, "malloc");
  if (function == NULL || dladdr(function, &info) == 0 || info.dli_fname == NULL)
    return ENOENT;
  if (strlen(info.dli_fname) >= size)
    return ENAMETOOLONG;
  strcpy(path, info.dli_fname);
  return 0;
}

int heap_set_option(int option, int value)
{
#ifdef __GLIBC__
  return mallopt(option, value) == 1 ? 0 : EINVAL;
#else
  return EINVAL;
#endif
}

static size_t reserved; /* bytes that heap_trim reserves again */

int heap_reserve(size_t size, void **address)
{
  if (size < OS_HUGE_PAGE_SIZE || size > PTRDIFF_MAX)
    return EINVAL;
  char *memory = malloc(size);
  if (memory == NULL)
    return ENOMEM;
  const char *end = sbrk(0);
  if ((uintptr_t)memory >= (uintptr_t)end) { /* a mapping, above the end of the program's heap */
    free(memory);
    return ENOTSUP;
  }
  const size_t page = OS_HUGE_PAGE_SIZE;
  char *start = memory + (-(uintptr_t)memory) % page;
  const int error = os_advise_huge(start, (size_t)(memory + size - start) / page * page);
  *address = start;
  reserved = size;
  free(memory); /* the thresholds let libc keep it as the top of its heap */
  return error;
}

int heap_trim(void)
{
#ifdef __GLIBC__
  const int trimmed = malloc_trim(0);
  void *address;
  if (reserved > 0)
    heap_reserve(reserved, &address);
  return trimmed;
#else
  return 0;
#endif
}
