/* From the sums of a tile to its result. */
#pragma once
#include "gemm.h"

/* A tile whose sums are computed, and its place. */
struct done {
  struct tile tile;
  size_t column;
};

/* What is added to the sums at the end of a tile may lie far away: it is asked for before the tile. */
void expect(const struct result *result, size_t begin, size_t end, size_t column);

/* Rows [begin, end) of those that are done: bias, activation, factor, addend; `sums` are of the whole tile,
 * [rows][PANEL]. */
void finish_rows(const struct matrix *matrix, const struct operand *operand, const struct result *result,
                 const struct done *done, size_t begin, size_t end, const float *sums);
