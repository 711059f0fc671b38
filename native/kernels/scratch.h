/* Memory for the intermediate results of one call. The caller frees it. */
#pragma once
#include <stddef.h>

/* aligned_alloc: NULL if there is no memory. Tests replace it by a function that fails. */
extern void *(*scratch_allocate)(size_t alignment, size_t size);

/* Bytes of a block's intermediate results: most of a core's second-level cache. Set before the first call. */
extern size_t block_bytes;

/* Space for `count` items, on cache lines of its own. If base is NULL, only the size is counted. */
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
