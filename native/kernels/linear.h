/* A linear layer on its own. */
#pragma once
#include "gemm.h"

/* output = activation(input weight^T + bias); rows are float32 and contiguous. ENOMEM if there is no memory
 * for converted rows; 0 otherwise. */
int linear_run(const struct matrix *matrix, enum activation activation, const float *input, float *output,
               size_t rows, unsigned threads);
