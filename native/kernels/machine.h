/* What the kernels know of the machine they run on: set once, before the first call. */
#pragma once
#include <stddef.h>

struct machine {
  size_t block_bytes; /* of intermediate results in a block: most of a core's second-level cache */
};

extern struct machine machine;
