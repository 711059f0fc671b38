/* gemm (gemm.h) with AMX: in bfloat16 and int8, and in split float32 (struct operand). */
#pragma once
#include "gemm.h"

void gemm_by_amx(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                 size_t last, const struct result *result);
void gemm_by_parts(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                   size_t last, const struct result *result);
