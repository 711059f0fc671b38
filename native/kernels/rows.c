#include "rows.h"

#include <float.h>
#include <string.h>

void norm_row(const struct norm *norm, const float *x, size_t columns, float *out)
{
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  float mean = 0;
  if (norm->kind == NORM_NONE) {
    memmove(out, x, columns * sizeof *x);
    return;
  }
  if (norm->kind == NORM_LAYER) {
    for (size_t i = 0; i < columns; i += 16)
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes((long)(columns - i)), x + i));
    mean = _mm512_reduce_add_ps(sum) / (float)columns;
  }
  /* a second pass: the difference of two large numbers would lose the variance */
  const __m512 means = _mm512_set1_ps(mean);
  for (size_t i = 0; i < columns; i += 16) {
    const __mmask16 mask = lanes((long)(columns - i));
    const __m512 centred = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + i), means);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const float variance = _mm512_reduce_add_ps(squares) / (float)columns;
  const __m512 factor = _mm512_set1_ps(1.f / __builtin_sqrtf(variance + norm->epsilon));
  for (size_t i = 0; i < columns; i += 16) {
    const __mmask16 mask = lanes((long)(columns - i));
    __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), means), factor);
    if (norm->weight != NULL)
      y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(mask, norm->weight + i));
    if (norm->bias != NULL)
      y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, norm->bias + i));
    _mm512_mask_storeu_ps(out + i, mask, y);
  }
}

/* 16 numbers, as 32-bit integers that may lie outside of 0 to 255. */
INLINE __m512i quantized(const float *factors, const void *x, int bf16, size_t i, __mmask16 mask,
                         __m512 factor, __m512 zeros)
{
  const __m512 smooth = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, factors + i), factor);
  return _mm512_cvtps_epi32(_mm512_fmadd_ps(load_floats(x, i, mask, bf16), smooth, zeros));
}

/* 64 of those, as bytes: packing works within 128-bit lanes, so the order is put right afterwards. */
INLINE __m512i to_bytes(__m512i a, __m512i b, __m512i c, __m512i d)
{
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order,
                                  _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d)));
}

static void quantize_row(const float *factors, const void *x, int bf16, size_t columns, uint8_t *out,
                         float *scale, float *shift)
{
  __m512 lowest = _mm512_setzero_ps(), highest = _mm512_setzero_ps(); /* 0 is in the range: padding is 0 */
  __m512 nan = _mm512_setzero_ps();                                   /* min and max would forget it again */
  for (size_t i = 0; i < columns; i += 16) {
    const __mmask16 mask = lanes((long)(columns - i));
    const __m512 v = _mm512_mul_ps(load_floats(x, i, mask, bf16), _mm512_maskz_loadu_ps(mask, factors + i));
    lowest = _mm512_min_ps(lowest, v);
    highest = _mm512_max_ps(highest, v);
    nan = _mm512_fmadd_ps(v, _mm512_setzero_ps(), nan);
  }
  const float low = _mm512_reduce_min_ps(lowest), high = _mm512_reduce_max_ps(highest);
  const float range = (high - low) / 255.f,
              step = range >= FLT_MIN ? range : 1.f; /* 1 / step must be finite */
  *scale = _mm512_cmp_ps_mask(nan, nan, _CMP_UNORD_Q) ? __builtin_nanf("") : step;
  const float zero = __builtin_rintf(-low / step); /* what 0 becomes: exactly a whole number */
  *shift = zero * step;
  const __m512 factor = _mm512_set1_ps(1.f / step), zeros = _mm512_set1_ps(zero);
  size_t i = 0;
  for (; i + 64 <= columns; i += 64) {
    __m512i q[4];
    for (size_t j = 0; j < 4; j++)
      q[j] = quantized(factors, x, bf16, i + 16 * j, 0xffff, factor, zeros);
    _mm512_storeu_si512(out + i, to_bytes(q[0], q[1], q[2], q[3]));
  }
  for (; i < columns; i += 16) {
    const __mmask16 mask = lanes((long)(columns - i));
    const __m512i q = quantized(factors, x, bf16, i, mask, factor, zeros);
    _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
  }
  const size_t end = kind_words(KIND_I8, columns) * 4;
  memset(out + columns, 0, end - columns);
}

void convert_row(const struct matrix *matrix, const void *x, int bf16, size_t columns, uint32_t *words,
                 float *scale, float *shift)
{
  const enum kind kind = matrix->kind;
  if (kind == KIND_I8) {
    quantize_row(matrix->factors, x, bf16, columns, (uint8_t *)words, scale, shift);
    for (size_t e = 0; matrix->exact != NULL && e < EXACT; e++) {
      const float input = _mm512_cvtss_f32(load_floats(x, (size_t)matrix->exact_inputs[e], 1, bf16));
      memcpy(words + matrix->words + e, &input, sizeof input);
    }
    return;
  }
  for (size_t i = 0; i < columns; i += 16) {
    const __mmask16 mask = lanes((long)(columns - i));
    store_floats(words, i, mask, kind == KIND_BF16, load_floats(x, i, mask, bf16));
  }
  if (kind == KIND_BF16 && columns % 2 == 1)
    ((uint16_t *)words)[columns] = 0;
}

/* Three parts of a row, padded with zeros up to whole steps of AMX. */
static void split_row(const void *x, int bf16, size_t columns, uint32_t *words, size_t part)
{
  enum { STEP = 2 * AMX_WORDS };
  const size_t end = (columns + STEP - 1) / STEP * STEP;
  for (size_t i = 0; i < end; i += 16) {
    const __m512 numbers = load_floats(x, i, lanes((long)(columns - i)), bf16);
    store_parts((uint16_t *)words + i, 2 * part, 0xffff, numbers);
  }
}

void fill_row(const struct matrix *matrix, const struct operand *operand, size_t row, const void *x, int bf16,
              size_t columns)
{
  uint32_t *words = operand->words + row * operand->stride;
  if (operand->part)
    split_row(x, bf16, columns, words, operand->part);
  else
    convert_row(matrix, x, bf16, columns, words, operand->scales + row, operand->shifts + row);
}
