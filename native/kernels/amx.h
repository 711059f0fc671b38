/* Intel AMX: registers that hold 16 rows of 16 words, and an instruction that multiplies two of them, in
 * bfloat16 or int8. With eight of these registers, tiles have up to 32 rows and 32 columns. A packed weight
 * (gemm.h) has the layout that the registers need. Only in sets with HAS_AMX. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { AMX_ROWS = 32, AMX_WORDS = 16 }; /* of a tile; of one step along the summed dimension */

/* Requests the registers from the kernel for this process. Returns whether the CPU has them, for bfloat16 and
 * int8, and the process may use them. */
int amx_allowed(void);

/* Between amx_begin, for tiles of `rows` rows (1 to 32), and amx_end, no other library may use the thread's
 * registers. */
void amx_begin(size_t rows);
void amx_end(void);

/* The memory to prefetch meanwhile: `lines` cache lines with each step. */
struct amx_ahead {
  const char *next;
  size_t lines;
};

/* The tile = 0. */
void amx_clear(void);

/* The tile += the first `words` words of its rows of `a` times those of one panel. */
void amx_multiply(int int8, size_t rows, const uint32_t *a, size_t stride, const uint32_t *panel,
                  size_t words, struct amx_ahead *ahead);

/* The tile += rows of `a` times a panel, both float32 numbers that are split into three in bfloat16 (SPLIT).
 * The three parts are a_part and panel_part words apart. `words` is a multiple of AMX_WORDS. */
void amx_multiply_split(size_t rows, const uint32_t *a, size_t stride, size_t a_part, const uint32_t *panel,
                        size_t panel_part, size_t words);

/* The tile = sums[rows][32]; and sums = the tile, as float32 or int32. */
void amx_load(size_t rows, const float *sums, size_t sums_stride);
void amx_store(size_t rows, float *sums, size_t sums_stride);
