/* gemm (gemm.h) with AMX: in bfloat16 and int8, in split float32 (struct operand), and with a weight in
 * groups that is unpacked. */
#pragma once
#include "gemm.h"

void gemm_by_amx(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                 size_t last, const struct result *result);
void gemm_by_parts(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                   size_t last, const struct result *result);
void gemm_by_unpacking(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                       size_t last, const struct result *result);

/* Leaves out the first rows of an operand and of what becomes of them. */
void skip_rows(struct operand *operand, struct result *result, size_t rows);
