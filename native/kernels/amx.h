/* Intel AMX: registers that hold 16 rows of 16 words, and an instruction that multiplies two of them, in
 * bfloat16 or int8. Eight such registers make tiles of up to 32 rows and 32 columns. A packed weight (gemm.h)
 * is what they expect as it is. Only in sets with HAS_AMX. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { AMX_ROWS = 32, AMX_WORDS = 16 }; /* of a tile; of one step along the summed dimension */

/* Asks the kernel for the registers, for this process: whether it may use them, and the CPU has them, for
 * bfloat16 and int8. */
int amx_allowed(void);

/* A thread's registers, between amx_begin for tiles of `rows` rows, 1 to 32, and amx_end. No other library
 * may use them meanwhile. */
void amx_begin(size_t rows);
void amx_end(void);

/* What shall come from memory meanwhile: `lines` cache lines with each step. */
struct amx_ahead {
  const char *next;
  size_t lines;
};

/* The tile = 0. */
void amx_clear(void);

/* The tile += `words` words of its rows of `a` times those of one panel. */
void amx_multiply(int int8, size_t rows, const uint32_t *a, size_t stride, const uint32_t *panel,
                  size_t words, struct amx_ahead *ahead);

/* The tile += float32 numbers, each the sum of three in bfloat16 (SPLIT): parts of `a` and of the panel are
 * so many words apart. `words` is a multiple of AMX_WORDS. */
void amx_multiply_split(size_t rows, const uint32_t *a, size_t stride, size_t a_part, const uint32_t *panel,
                        size_t panel_part, size_t words);

/* The tile = sums[rows][32]; the other way round, as float32 or int32. */
void amx_load(size_t rows, const float *sums, size_t sums_stride);
void amx_store(size_t rows, float *sums, size_t sums_stride);
