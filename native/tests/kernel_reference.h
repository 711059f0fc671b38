/* What the kernels compute, once more in plain C and double precision, and memory that ends where it ends. */
#pragma once
#include "check.h"
#include "kernel_tests.h"
#include "kernels/gemm_grouped.h"
#include "kernels/layer.h"

/* `count` things in memory behind which nothing can be read or written: sanitizers see neither masked loads
 * nor assembler. Given back by guarded_release, all together. Not for several threads. */
void *guarded(size_t count, size_t size);
void guarded_release(void);

/* Random numbers, the same at every run. */
double uniform(double low, double high);
size_t below(size_t limit);
float *uniform_floats(size_t count, double low, double high);

uint16_t bf16_of(float x); /* rounded to nearest even */
float bf16_to(uint16_t x);

/* A weight in a kind: packed for the kernels, and the numbers that it then stands for. */
struct weight {
  struct matrix matrix;
  double *numbers; /* [columns][in_features] */
  size_t in_features;
};

/* What a place in a word of a weight in groups holds, as a number. */
uint32_t number_held(enum kind kind, uint32_t held);

struct weight make_weight(enum kind kind, size_t columns, size_t in_features, int with_bias);

/* Number k of a row of an operand, as it is stored: for int8 a whole number. */
double operand_number(enum kind kind, const uint32_t *words, size_t k);

/* Rows of activations in a kind, converted by convert_row, and the numbers that they then stand for. */
struct rows {
  struct operand operand;
  double *numbers; /* [rows][in_features] */
};

struct rows make_rows(enum kind kind, size_t rows, size_t in_features, size_t stride);

double reference_activation(enum activation activation, double x);
void reference_norm(const struct norm *norm, const double *x, size_t columns, double *out);

/* out[column] = sum of x and the weight's column, and bias; in the weight's kind, `x` is not rounded. */
void reference_linear(const struct weight *weight, const double *x, double *out);

/* One query: q [size]; keys and values [length][stride]. `visible` and `bias` are of the keys; bias may be
 * NULL, and softcap 0. `sink`: a score of no key, or NULL. */
void reference_attention(const double *q, const double *keys, const double *values, size_t stride,
                         size_t length, size_t size, double scale, double softcap, const char *visible,
                         const double *bias, const float *sink, double *out);

/* `values` as numbers of a kind, and back in `values` as they then are. */
void *numbers_of(enum kind kind, size_t count, double *values);
