#include "gemm.h"

#include <string.h>

#include "finish.h"
#include "gemm_amx.h"

enum { AHEAD = 24 }; /* words: how far a panel's next lines are asked for from the second-level cache */

struct tiles tiles_begin(enum kind kind, size_t rows)
{
  const size_t most = tile_rows(kind), count = (rows + most - 1) / most;
  const struct tiles tiles = {kind, rows, count, count ? (rows + count - 1) / count : 0};
  if (by_amx(kind) && rows > 0)
    amx_begin(tiles.height);
  return tiles;
}

void tiles_end(const struct tiles *tiles)
{
  if (by_amx(tiles->kind) && tiles->rows > 0)
    amx_end();
}

struct tile tile_at(const struct tiles *tiles, size_t number)
{
  if (by_amx(tiles->kind)) {
    const size_t first = number * tiles->height, latest = tiles->rows - tiles->height;
    const size_t begin = first < latest ? first : latest;
    return (struct tile){begin, begin + tiles->height, first};
  }
  const size_t begin = tiles->rows * number / tiles->count;
  return (struct tile){begin, tiles->rows * (number + 1) / tiles->count, begin};
}

/* What shall come from memory while a tile is computed: two places, and how far both move with each word. The
 * tiles of a panel share the panel after it among them, so that memory delivers all the time: the first tile
 * alone would ask for more than memory gives, and the others for nothing. */
struct ahead {
  const char *first, *second;
  size_t step;
};

static struct ahead share_of(const uint32_t *next_panel, size_t words, size_t tile, size_t tiles)
{
  const size_t part = words * PANEL * sizeof *next_panel / tiles;
  const char *first = (const char *)next_panel + part * tile;
  return (struct ahead){first, first + part / 2, 64 / tiles};
}

/* sums += word of a * words of b, for 2 x 16 columns. bf16 and int8 are in assembler: the compiler would
 * otherwise load all rows' words before it multiplies, and run out of registers; and it may not use these
 * instructions anywhere else, for not every CPU with AVX-512 has them. */
INLINE void multiply(enum kind kind, __m512 sums[2], const uint32_t *a, __m512 b0, __m512 b1)
{
  __m512 word;
  if (kind == KIND_F32) {
    float value;
    memcpy(&value, a, sizeof value);
    sums[0] = _mm512_fmadd_ps(_mm512_set1_ps(value), b0, sums[0]);
    sums[1] = _mm512_fmadd_ps(_mm512_set1_ps(value), b1, sums[1]);
  } else if (kind == KIND_BF16) {
    __asm__("vpbroadcastd %3, %2\n\tvdpbf16ps %4, %2, %0\n\tvdpbf16ps %5, %2, %1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(word)
            : "m"(*a), "v"(b0), "v"(b1));
  } else {
    __asm__("vpbroadcastd %3, %2\n\tvpdpbusd %4, %2, %0\n\tvpdpbusd %5, %2, %1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(word)
            : "m"(*a), "v"(b0), "v"(b1));
  }
}

INLINE void tile(enum kind kind, const size_t rows, const uint32_t *a, size_t stride, const uint32_t *panel,
                 size_t words, float *out, size_t out_stride, struct ahead ahead)
{
  __m512 sums[VECTOR_ROWS][2]; /* of int32 for int8: one type for all keeps them in registers */
#pragma GCC unroll 14
  for (size_t r = 0; r < rows; r++)
    sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  for (size_t k = 0; k < words; k++, panel += PANEL) {
    _mm_prefetch((const char *)(panel + AHEAD * PANEL), _MM_HINT_T0);
    _mm_prefetch((const char *)(panel + AHEAD * PANEL + 16), _MM_HINT_T0);
    _mm_prefetch(ahead.first, _MM_HINT_T1);
    _mm_prefetch(ahead.second, _MM_HINT_T1);
    ahead.first += ahead.step, ahead.second += ahead.step;
    const __m512 b0 = _mm512_loadu_ps(panel), b1 = _mm512_loadu_ps(panel + 16);
#pragma GCC unroll 14
    for (size_t r = 0; r < rows; r++)
      multiply(kind, sums[r], a + r * stride + k, b0, b1);
  }
#pragma GCC unroll 14
  for (size_t r = 0; r < rows; r++) {
    _mm512_storeu_ps(out + r * out_stride, sums[r][0]);
    _mm512_storeu_ps(out + r * out_stride + 16, sums[r][1]);
  }
}

// clang-format off: it moves these lines at every run
#define CASE(kind, rows)                                          \
  case rows:                                                      \
    tile(kind, rows, a, stride, panel, words, sums, sums_stride, ahead); \
    break;
/* One unrolled loop for each number of rows. */
#define TILE(name, kind)                                                                             \
  static __attribute__((noinline)) void name(size_t rows, const uint32_t *a, size_t stride,          \
                                             const uint32_t *panel, size_t words, float *sums,       \
                                             size_t sums_stride, struct ahead ahead)                                     \
  {                                                                                                  \
    switch (rows) {                                                                                  \
      CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4) CASE(kind, 5) CASE(kind, 6)            \
      CASE(kind, 7) CASE(kind, 8) CASE(kind, 9) CASE(kind, 10) CASE(kind, 11) CASE(kind, 12)         \
      CASE(kind, 13) CASE(kind, 14)                                                                  \
    }                                                                                                \
  }
// clang-format on
TILE(tile_f32, KIND_F32)
TILE(tile_bf16, KIND_BF16)
TILE(tile_i8, KIND_I8)

static void (*const tiles_of[KINDS])(size_t, const uint32_t *, size_t, const uint32_t *, size_t, float *,
                                     size_t, struct ahead) = {tile_f32, tile_bf16, tile_i8};

void gemm_tile(const struct tiles *tiles, const struct tile *tile, const uint32_t *a, size_t stride,
               const uint32_t *panel, size_t words, float *sums, size_t sums_stride)
{
  const size_t rows = tile->end - tile->begin;
  if (by_amx(tiles->kind)) {
    struct amx_ahead nothing = {NULL, 0};
    amx_clear();
    amx_multiply(tiles->kind == KIND_I8, rows, a, stride, panel, words, &nothing);
    amx_store(rows, sums, sums_stride);
    return;
  }
  const struct ahead nothing = {(const char *)panel, (const char *)panel, 0};
  tiles_of[tiles->kind](rows, a, stride, panel, words, sums, sums_stride, nothing);
}

static void gemm_by_vectors(const struct matrix *matrix, const struct operand *operand, size_t rows,
                            size_t first, size_t last, const struct result *result)
{
  const struct tiles tiles = tiles_begin(matrix->kind, rows);
  float sums[VECTOR_ROWS * PANEL] __attribute__((aligned(64)));
  for (size_t p = first; p < last; p++)
    for (size_t t = 0; t < tiles.count; t++) {
      const struct done done = {tile_at(&tiles, t), p * PANEL};
      const size_t begin = done.tile.begin, end = done.tile.end;
      const uint32_t *panel = matrix->panels + p * matrix->words * PANEL;
      /* behind the last panel often lies the next matrix; to ask for memory that does not exist is no error
       */
      const struct ahead ahead = share_of(panel + matrix->words * PANEL, matrix->words, t, tiles.count);
      expect(result, begin, end, p * PANEL);
      tiles_of[matrix->kind](end - begin, operand->words + begin * operand->stride, operand->stride, panel,
                             matrix->words, sums, PANEL, ahead);
      finish_rows(matrix, operand, result, &done, begin, end, sums);
    }
}

void gemm(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first, size_t last,
          const struct result *result)
{
  if (first == last) /* of few panels, a thread may have none */
    return;
  if (operand->part)
    gemm_by_parts(matrix, operand, rows, first, last, result);
  else if (by_amx(matrix->kind))
    gemm_by_amx(matrix, operand, rows, first, last, result);
  else
    gemm_by_vectors(matrix, operand, rows, first, last, result);
}
