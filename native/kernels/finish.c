#include "finish.h"

/* The result from a tile's sums, for LANES columns of rows [begin, end). */
INLINE void finish(const int int8, const enum activation activation, const struct matrix *matrix,
                   const struct operand *operand, const struct result *result, size_t begin, size_t end,
                   size_t column, vec_mask some, const float *sums)
{
  const size_t size = result->bf16 ? sizeof(uint16_t) : sizeof(float);
  vec bias = vec_zero(), scales = bias, weights = bias;
  if (matrix->bias != NULL)
    bias = vec_load_some(matrix->bias + column, some);
  if (int8) {
    scales = vec_load_some(matrix->scales + column, some);
    weights = vec_load_some(matrix->sums + column, some);
  }
  const int exact = int8 && matrix->exact != NULL;
  vec exact_weights[EXACT];
  for (size_t e = 0; e < EXACT; e++)
    exact_weights[e] = exact ? vec_load(matrix->exact + e * matrix_panels(matrix) * PANEL + column) : bias;
  for (size_t row = begin; row < end; row++, sums += PANEL) {
    vec x = vec_load(sums);
    if (int8) {
      const vec constant = vec_minus_product(vec_of(operand->shifts[row]), weights, bias);
      x = vec_from_ints(x);
      x = vec_fma(x, vec_mul(scales, vec_of(operand->scales[row])), constant);
      if (exact) {
        const float *inputs =
            (const float *)(operand->words + row * operand->stride + matrix->words * words_per_word(KIND_I8));
        for (size_t e = 0; e < EXACT; e++)
          x = vec_fma(vec_of(inputs[e]), exact_weights[e], x);
      }
    } else {
      x = vec_add(x, bias);
    }
    x = activate(activation, x);
    if (result->factor != NULL)
      x = vec_mul(x, vec_load_some(result->factor + row * result->factor_stride + column, some));
    if (result->addend != NULL) {
      const size_t from = result->addend_index == NULL ? row : (size_t)result->addend_index[row];
      x = vec_add(x, vec_load_some(result->addend + from * result->addend_stride + column, some));
    }
    char *place = (char *)result->rows + row * result->stride * size;
    if (result->part)
      store_parts((uint16_t *)place + column, result->part, some, x);
    else
      store_floats(place, column, some, result->bf16, x);
  }
}

// clang-format off
#define FINISH(activation)                                                                             \
  case activation:                                                                                     \
    for (size_t v = 0; v < VECTORS && column + v * LANES < matrix->columns; v++)                       \
      finish(int8, activation, matrix, operand, result, begin, end, column + v * LANES,                \
             lanes((long)(matrix->columns - column - v * LANES)), sums + v * LANES);                   \
    break;
// clang-format on
/* One loop over rows for each activation, so that the loop has no branch on the activation. */
INLINE void finish_tile(const int int8, const struct matrix *matrix, const struct operand *operand,
                        const struct result *result, size_t begin, size_t end, size_t column,
                        const float *sums)
{
  switch (result->activation) {
    FINISH(ACT_NONE)
    FINISH(ACT_GELU)
    FINISH(ACT_GELU_TANH)
    FINISH(ACT_QUICK_GELU)
    FINISH(ACT_RELU)
    FINISH(ACT_SILU)
    FINISH(ACT_TANH)
    FINISH(ACT_GELU_ROUGH)
    FINISH(ACT_RELU_SQUARED)
  case ACTIVATIONS:
    break;
  }
}

void expect(const struct result *result, size_t begin, size_t end, size_t column)
{
  for (size_t row = begin; result->addend != NULL && row < end; row++) {
    const size_t from = result->addend_index == NULL ? row : (size_t)result->addend_index[row];
    const float *addend = result->addend + from * result->addend_stride + column;
    for (size_t i = 0; i < PANEL; i += 16)
      PREFETCH(addend + i, NEAR);
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
