/* Memory for the intermediate results of one call, given back with free. */
#pragma once
#include <stddef.h>

/* aligned_alloc: NULL where there is no memory. Tests make it fail. */
extern void *(*scratch_allocate)(size_t alignment, size_t size);
