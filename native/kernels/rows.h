/* Operations on rows of activations between two matrix multiplications. */
#pragma once
#include "gemm.h"

enum norm_kind {
  NORM_LAYER, /* (x - mean) / sqrt(variance + epsilon) * weight + bias */
  NORM_RMS,   /* x / sqrt(mean of squares + epsilon) * weight + bias */
  NORM_NONE,  /* x */
  NORMS
};

/* Over the numbers of a row, in float32. weight and bias may be NULL. */
struct norm {
  const float *weight, *bias;
  float epsilon;
  enum norm_kind kind;
};

/* Numbers of float32 or bfloat16 from one place to another, in the type that they have there. */
void copy_numbers(const void *from, int from_bf16, void *to, int to_bf16, size_t count);

/* The same to signed bytes, and the float that these are to be multiplied with. */
void copy_as_bytes(const float *from, void *to, size_t count);

/* What the numbers of a row are to be multiplied with. */
float row_factor(const void *row, size_t count, enum number number);

/* out may be x. */
void norm_row(const struct norm *norm, const float *x, size_t columns, float *out);

/* Fills row `row` of an operand of `matrix`. x is float32, or bfloat16. */
void fill_row(const struct matrix *matrix, const struct operand *operand, size_t row, const void *x, int bf16,
              size_t columns);

/* Converts one row to the kind that `matrix` multiplies: operand_words words, the last one padded with zeros.
 * x is float32, or bfloat16. For int8 the row's scale and shift are written too:
 * x factor = scale q - shift, 0 <= q <= 255. For groups, each group's scale and total lie in the
 * row. */
void convert_row(const struct matrix *matrix, const void *x, int bf16, size_t columns, uint32_t *words,
                 float *scale, float *shift);
