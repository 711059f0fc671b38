#include "gemm.h"

#include "finish.h"
#include "gemm_amx.h"
#include "gemm_grouped.h"
#include "tile.h"

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

/* LANES words of a panel as they are multiplied: one part, or two where they are widened. */
INLINE vec panel_part(const enum kind kind, const size_t part, const uint32_t *words)
{
  const vec_ints b = vec_as_ints(vec_load(words));
  if (words_per_word(kind) == 1)
    return ints_as_vec(b);
  if (kind == KIND_BF16)
    return part == 0 ? ints_as_vec(ints_left(b, 16)) : vec_upper(ints_as_vec(b));
  return ints_as_vec(bytes_widen(b, part));
}

/* Cache lines of a panel's word. */
enum { LINES = PANEL * sizeof(uint32_t) / 64 };

/* What shall come from memory while a tile is computed: LINES places, and how far they move with each word.
 * The tiles of a panel share the panel after it among them, so that memory delivers all the time: the first
 * tile alone would ask for more than memory gives, and the others for nothing. */
struct ahead {
  const char *next;
  size_t apart, step;
};

static struct ahead share_of(const uint32_t *next_panel, size_t words, size_t tile, size_t tiles)
{
  const size_t part = words * PANEL * sizeof *next_panel / tiles;
  return (struct ahead){(const char *)next_panel + part * tile, part / LINES, 64 / tiles};
}

/* How a panel lies in memory: as it was packed, or with each word widened once for many tiles. */
enum form { PACKED, WIDENED };

INLINE void tile(const enum kind kind, const enum form form, const size_t rows, const uint32_t *a,
                 size_t stride, const uint32_t *panel, size_t words, float *out, size_t out_stride,
                 struct ahead ahead)
{
  vec sums[VECTOR_ROWS][VECTORS]; /* of int32 for int8: one type for all keeps them in registers */
#pragma GCC unroll 14
  for (size_t r = 0; r < rows; r++)
    for (size_t v = 0; v < VECTORS; v++)
      sums[r][v] = vec_zero();
  const size_t parts = form == WIDENED ? 1 : words_per_word(kind);
  for (size_t k = 0; k < words; k++, panel += PANEL, a += parts) {
    for (size_t line = 0; line < LINES; line++) {
      PREFETCH(panel + AHEAD * PANEL + line * 16, NEAR);
      PREFETCH(ahead.next + line * ahead.apart, FAR);
    }
    ahead.next += ahead.step;
#pragma GCC unroll 2
    for (size_t part = 0; part < parts; part++) {
      vec b[VECTORS];
#pragma GCC unroll 4
      for (size_t v = 0; v < VECTORS; v++)
        b[v] = form == WIDENED ? vec_load((const float *)panel + v * LANES)
                               : panel_part(kind, part, panel + v * LANES);
#pragma GCC unroll 14
      for (size_t r = 0; r < rows; r++)
        multiply(kind, sums[r], a + r * stride + part, b);
    }
  }
#pragma GCC unroll 14
  for (size_t r = 0; r < rows; r++)
    for (size_t v = 0; v < VECTORS; v++)
      vec_store(out + r * out_stride + v * LANES, sums[r][v]);
}

// clang-format off: it moves these lines at every run
#define CASE(kind, rows)                                                                             \
  case rows:                                                                                         \
    tile(kind, form, rows, a, stride, panel, words, sums, sums_stride, ahead);                       \
    break;
/* One unrolled loop for each number of rows. */
#define TILE(name, kind, panels)                                                                     \
  static __attribute__((noinline)) void name(size_t rows, const uint32_t *a, size_t stride,          \
                                             const uint32_t *panel, size_t words, float *sums,       \
                                             size_t sums_stride, struct ahead ahead)                 \
  {                                                                                                  \
    const enum form form = panels;                                                                   \
    switch (rows) {                                                                                  \
      EACH_ROWS(CASE, kind)                                                                          \
    }                                                                                                \
  }
// clang-format on
TILE(tile_f32, KIND_F32, PACKED)
TILE(tile_bf16, KIND_BF16, PACKED)
TILE(tile_i8, KIND_I8, PACKED)
TILE(tile_widened, KIND_I8, WIDENED)

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
  const struct ahead nothing = {(const char *)panel, 0, 0};
  tiles_of[tiles->kind](rows, a, stride, panel, words, sums, sums_stride, nothing);
}

/* From how many tiles on a panel of int8 is widened once for all of them: for each anew costs a ninth of the
 * vector instructions. */
enum { WIDENED_TILES = 4 };
/* Words of the longest panel that is: 128 KiB of 16-bit integers, from the second-level cache. */
enum { WIDENED_WORDS = DOT_I8 ? 0 : 1024 };

static int is_widened_once(const struct matrix *matrix, size_t tiles)
{
  return !DOT_I8 && matrix->kind == KIND_I8 && tiles >= WIDENED_TILES && matrix->words <= WIDENED_WORDS;
}

/* wide[2 words][PANEL] */
static void widen(const uint32_t *panel, size_t words, uint32_t *wide)
{
  for (size_t k = 0; k < words; k++, panel += PANEL)
    for (size_t part = 0; part < words_per_word(KIND_I8); part++, wide += PANEL)
      for (size_t v = 0; v < VECTORS; v++)
        vec_store((float *)wide + v * LANES, panel_part(KIND_I8, part, panel + v * LANES));
}

static void gemm_by_vectors(const struct matrix *matrix, const struct operand *operand, size_t rows,
                            size_t first, size_t last, const struct result *result)
{
  const struct tiles tiles = tiles_begin(matrix->kind, rows);
  const int widened = is_widened_once(matrix, tiles.count);
  const size_t words = widened ? words_per_word(KIND_I8) * matrix->words : matrix->words;
  float sums[VECTOR_ROWS * PANEL] __attribute__((aligned(64)));
  uint32_t wide[2 * WIDENED_WORDS * PANEL + 1] __attribute__((aligned(64)));
  for (size_t p = first; p < last; p++) {
    const uint32_t *packed = matrix->panels + p * matrix->words * PANEL;
    if (widened)
      widen(packed, matrix->words, wide);
    for (size_t t = 0; t < tiles.count; t++) {
      const struct done done = {tile_at(&tiles, t), p * PANEL};
      const size_t begin = done.tile.begin, end = done.tile.end;
      /* behind the last panel often lies the next matrix; to ask for memory that does not exist is no error
       */
      struct ahead ahead = share_of(packed + matrix->words * PANEL, matrix->words, t, tiles.count);
      ahead.step /= widened ? words_per_word(KIND_I8) : 1;
      expect(result, begin, end, p * PANEL);
      (widened ? tile_widened : tiles_of[matrix->kind])(end - begin, operand->words + begin * operand->stride,
                                                        operand->stride, widened ? wide : packed, words, sums,
                                                        PANEL, ahead);
      finish_rows(matrix, operand, result, &done, begin, end, sums);
    }
  }
}

void gemm(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first, size_t last,
          const struct result *result)
{
  if (first == last) /* of few panels, a thread may have none */
    return;
  if (HAS_AMX && operand->part)
    gemm_by_parts(matrix, operand, rows, first, last, result);
  else if (HAS_AMX && operand->unpacked)
    gemm_by_unpacking(matrix, operand, rows, first, last, result);
  else if (is_grouped(matrix->kind))
    gemm_grouped(matrix, operand, rows, first, last, result);
  else if (by_amx(matrix->kind))
    gemm_by_amx(matrix, operand, rows, first, last, result);
  else
    gemm_by_vectors(matrix, operand, rows, first, last, result);
}
