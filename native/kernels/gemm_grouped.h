/* gemm (gemm.h) with a weight in groups. */
#pragma once
#include "gemm.h"

void gemm_grouped(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                  size_t last, const struct result *result);

/* LANES words of a column's scale and minimum: the scale is the lower half. */
INLINE vec group_scale(const uint32_t *words)
{
  return ints_as_vec(ints_left(vec_as_ints(vec_load(words)), 16));
}

INLINE vec group_minimum(const uint32_t *words)
{
  return vec_upper(vec_load(words));
}

/* Numbers below 16 of each byte: the lower or the upper ones. */
INLINE vec_ints nibbles(vec_ints bytes, const int upper)
{
  return ints_and(upper ? ints_right(bytes, 4) : bytes, ints_of(0x0f0f0f0f));
}
