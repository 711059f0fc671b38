#include "scratch.h"

#include <stdlib.h>

void *(*scratch_allocate)(size_t alignment, size_t size) = aligned_alloc;
size_t block_bytes = 768 << 10;
