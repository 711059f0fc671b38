/* Memory for the intermediate results of one call, given back with free. */
#pragma once
#include <stddef.h>

/* aligned_alloc: NULL where there is no memory. Tests make it fail. */
extern void *(*scratch_allocate)(size_t alignment, size_t size);

/* Of intermediate results in a block: most of a core's second-level cache. Set once, before the first call.
 */
extern size_t block_bytes;

/* Space for `count` things, on cache lines of its own. With base NULL only the size is counted. */
static inline void *carve(char *base, size_t *used, size_t count, size_t size)
{
  void *place = base == NULL ? NULL : base + *used;
  *used += (count * size + 63) / 64 * 64;
  return place;
}

static inline size_t larger(size_t a, size_t b)
{
  return a > b ? a : b;
}

static inline size_t smaller(size_t a, size_t b)
{
  return a < b ? a : b;
}
