/* How words are multiplied (gemm.h) on NEON. */
#pragma once
#include <string.h>

#include "gemm.h"

// clang-format off: it moves these lines at every run
#define EACH_ROWS(CASE, kind) \
  CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4) CASE(kind, 5) CASE(kind, 6)
// clang-format on

/* sum += the two products of 16-bit numbers in each word */
INLINE int32x4_t add_products(int32x4_t sum, int16x8_t a, int16x8_t b)
{
  const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b)), high = vmull_high_s16(a, b);
  return vaddq_s32(sum, vpaddq_s32(low, high));
}

INLINE vec multiply_add(const enum kind kind, vec sum, uint32x4_t word, vec b)
{
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
  if (kind == KIND_BF16)
    return vbfdotq_f32(sum, vreinterpretq_bf16_u32(word), vreinterpretq_bf16_f32(b));
#endif
#ifdef __ARM_FEATURE_DOTPROD
  if (kind == KIND_I8) /* activations are stored less 128: signed (BYTE_SHIFT) */
    return vreinterpretq_f32_s32(
        vdotq_s32(vreinterpretq_s32_f32(sum), vreinterpretq_s8_u32(word), vreinterpretq_s8_f32(b)));
#endif
  if (kind == KIND_I8)
    return vreinterpretq_f32_s32(
        add_products(vreinterpretq_s32_f32(sum), vreinterpretq_s16_u32(word), vreinterpretq_s16_f32(b)));
  return vfmaq_f32(sum, vreinterpretq_f32_u32(word), b);
}

INLINE void multiply(const enum kind kind, vec sums[VECTORS], const uint32_t *a, const vec b[VECTORS])
{
  const uint32x4_t word = vld1q_dup_u32(a);
#pragma GCC unroll 4
  for (size_t v = 0; v < VECTORS; v++)
    sums[v] = multiply_add(kind, sums[v], word, b[v]);
}

/* Groups (gemm_grouped.c): whether whole bytes are multiplied at once, or only numbers below 16; and whether
 * sums are pairs of 16 bits meanwhile. */
#ifdef __ARM_FEATURE_MATMUL_INT8
enum { WHOLE_BYTES = 1, IN_PAIRS = 0 };
#else
enum { WHOLE_BYTES = 0, IN_PAIRS = 0 };
#endif

INLINE int32x4_t multiply_add_unsigned(int32x4_t sum, int8x16_t a, int32x4_t b)
{
#if defined __ARM_FEATURE_MATMUL_INT8
  return vusdotq_s32(sum, vreinterpretq_u8_s32(b), a);
#elif defined __ARM_FEATURE_DOTPROD /* numbers below 16 are the same as signed ones */
  return vdotq_s32(sum, vreinterpretq_s8_s32(b), a);
#else
  const int8x16_t q = vreinterpretq_s8_s32(b);
  const int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(a)), high = vmull_high_s8(q, a);
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

/* sums += four unsigned bytes times four signed ones, for each word of the weight. */
INLINE void multiply_unsigned(vec_ints sums[VECTORS], const uint32_t *a, const vec_ints b[VECTORS])
{
  const int8x16_t word = vreinterpretq_s8_u32(vld1q_dup_u32(a));
#pragma GCC unroll 4
  for (size_t v = 0; v < VECTORS; v++)
    sums[v] = multiply_add_unsigned(sums[v], word, b[v]);
}

/* Sums are never pairs here. */
INLINE vec_ints add_pairs(vec_ints sums, vec_ints pairs, int16_t factor)
{
  return vmlaq_n_s32(sums, pairs, factor);
}
