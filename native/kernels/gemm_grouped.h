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

/* The numbers of KIND_E2M1, in order: 2 x + 12 for x = -6, -4, -3, -2, -1.5, ... 6. Two places hold the last.
 */
static const uint8_t of_e2m1[16] = {0, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24, 24};

/* Of each byte of a weight with two numbers in a byte: the lower or the upper one. */
INLINE vec_ints numbers_in(const enum kind kind, vec_ints bytes, const int upper)
{
  const vec_ints places = nibbles(bytes, upper);
  return kind == KIND_E2M1 ? bytes_at(of_e2m1, places) : places;
}
