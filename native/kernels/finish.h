/* Turns the sums of a tile into its result. */
#pragma once
#include "gemm.h"

/* A tile whose sums are computed, and its first column. */
struct done {
  struct tile tile;
  size_t column;
};

/* Prefetches the addend of a tile, which may not be in the caches. Called before the tile is computed. */
void expect(const struct result *result, size_t begin, size_t end, size_t column);

/* Applies bias, activation, factor and addend to rows [begin, end) of a tile. `sums`: the whole tile,
 * [rows][PANEL]. */
void finish_rows(const struct matrix *matrix, const struct operand *operand, const struct result *result,
                 const struct done *done, size_t begin, size_t end, const float *sums);
