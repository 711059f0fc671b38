/* A linear layer on its own. */
#pragma once
#include "gemm.h"

/* output = activation(input weight^T + bias); rows are contiguous, of float32 or bfloat16. ENOMEM if there is
 * no memory for converted rows; 0 otherwise. */
int linear_run(const struct matrix *matrix, enum activation activation, const void *input, void *output,
               int bf16, size_t rows, unsigned threads);

/* Rows that are multiplied together: tiles of them share each panel while the cache has it. */
size_t linear_block(const struct matrix *matrix);
