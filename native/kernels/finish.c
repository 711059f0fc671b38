#include "finish.h"

/* A tile's sums -> the result, for 16 columns of rows [begin, end). */
INLINE void finish(const int int8, const enum activation activation, const struct matrix *matrix,
                   const struct operand *operand, const struct result *result, size_t begin, size_t end,
                   size_t column, __mmask16 mask, const float *sums)
{
  const size_t size = result->bf16 ? sizeof(uint16_t) : sizeof(float);
  __m512 bias = _mm512_setzero_ps(), scales = bias, weights = bias;
  if (matrix->bias != NULL)
    bias = _mm512_maskz_loadu_ps(mask, matrix->bias + column);
  if (int8) {
    scales = _mm512_maskz_loadu_ps(mask, matrix->scales + column);
    weights = _mm512_maskz_loadu_ps(mask, matrix->sums + column);
  }
  const int exact = int8 && matrix->exact != NULL;
  __m512 exact_weights[EXACT];
  for (size_t e = 0; e < EXACT; e++)
    exact_weights[e] =
        exact ? _mm512_loadu_ps(matrix->exact + e * matrix_panels(matrix) * PANEL + column) : bias;
  for (size_t row = begin; row < end; row++, sums += PANEL) {
    __m512 x = _mm512_loadu_ps(sums);
    if (int8) {
      const __m512 constant = _mm512_fnmadd_ps(_mm512_set1_ps(operand->shifts[row]), weights, bias);
      x = _mm512_cvtepi32_ps(_mm512_castps_si512(x));
      x = _mm512_fmadd_ps(x, _mm512_mul_ps(scales, _mm512_set1_ps(operand->scales[row])), constant);
      if (exact) {
        const float *inputs = (const float *)(operand->words + row * operand->stride + matrix->words);
        for (size_t e = 0; e < EXACT; e++)
          x = _mm512_fmadd_ps(_mm512_set1_ps(inputs[e]), exact_weights[e], x);
      }
    } else {
      x = _mm512_add_ps(x, bias);
    }
    x = activate(activation, x);
    if (result->factor != NULL)
      x = _mm512_mul_ps(x,
                        _mm512_maskz_loadu_ps(mask, result->factor + row * result->factor_stride + column));
    if (result->addend != NULL) {
      const size_t from = result->addend_index == NULL ? row : (size_t)result->addend_index[row];
      x = _mm512_add_ps(x,
                        _mm512_maskz_loadu_ps(mask, result->addend + from * result->addend_stride + column));
    }
    char *place = (char *)result->rows + row * result->stride * size;
    if (result->part)
      store_parts((uint16_t *)place + column, result->part, mask, x);
    else
      store_floats(place, column, mask, result->bf16, x);
  }
}

// clang-format off
#define FINISH(activation)                                                                             \
  case activation:                                                                                     \
    finish(int8, activation, matrix, operand, result, begin, end, column, low, sums);                  \
    if (high)                                                                                          \
      finish(int8, activation, matrix, operand, result, begin, end, column + 16, high, sums + 16);     \
    break;
// clang-format on
/* One loop over rows for each activation, without a branch inside that depends on it. */
INLINE void finish_tile(const int int8, const struct matrix *matrix, const struct operand *operand,
                        const struct result *result, size_t begin, size_t end, size_t column,
                        const float *sums)
{
  const long left = (long)(matrix->columns - column);
  const __mmask16 low = lanes(left), high = lanes(left - 16);
  switch (result->activation) {
    FINISH(ACT_NONE)
    FINISH(ACT_GELU)
    FINISH(ACT_GELU_TANH)
    FINISH(ACT_QUICK_GELU)
    FINISH(ACT_RELU)
    FINISH(ACT_SILU)
    FINISH(ACT_TANH)
    FINISH(ACT_GELU_ROUGH)
  case ACTIVATIONS:
    break;
  }
}

void expect(const struct result *result, size_t begin, size_t end, size_t column)
{
  for (size_t row = begin; result->addend != NULL && row < end; row++) {
    const size_t from = result->addend_index == NULL ? row : (size_t)result->addend_index[row];
    const float *addend = result->addend + from * result->addend_stride + column;
    _mm_prefetch((const char *)addend, _MM_HINT_T0);
    _mm_prefetch((const char *)(addend + 16), _MM_HINT_T0);
  }
}

void finish_rows(const struct matrix *matrix, const struct operand *operand, const struct result *result,
                 const struct done *done, size_t begin, size_t end, const float *sums)
{
  sums += (begin - done->tile.begin) * PANEL;
  if (matrix->kind == KIND_I8)
    finish_tile(1, matrix, operand, result, begin, end, done->column, sums);
  else
    finish_tile(0, matrix, operand, result, begin, end, done->column, sums);
}
