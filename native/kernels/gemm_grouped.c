#include "gemm_grouped.h"

#include "finish.h"
#include "tile.h"

/* Words of activations after which sums of pairs are added up: 8 x 2 products below 15 x 128 fit 16 bits, and
 * 4 x 2 below 24 x 128. */
INLINE size_t paired(const enum kind kind)
{
  return kind == KIND_E2M1 || group_words(kind) < 8 ? 4 : 8;
}

enum { AHEAD = 64 }; /* words: how far the weight is asked for from memory */
enum { LINES = PANEL * sizeof(uint32_t) / 64 };

/* sums += factor times what was summed since they were added up last, for LANES columns. */
INLINE void add_up(vec_ints *sums, vec_ints *part, const int factor)
{
  if (IN_PAIRS)
    *sums = add_pairs(*sums, *part, (int16_t)factor);
  else
    *sums = ints_add(*sums, factor == 1 ? *part : ints_left(*part, 4));
  *part = vec_as_ints(vec_zero());
}

/* A word of the weight: its numbers, or the lower and the upper halves of its bytes. */
struct unpacked {
  vec_ints lower[VECTORS], upper[VECTORS];
};

INLINE struct unpacked unpack(const enum kind kind, const int whole, const uint32_t *panel)
{
  struct unpacked word;
#pragma GCC unroll 4
  for (size_t v = 0; v < VECTORS; v++) {
    const vec_ints bytes = vec_as_ints(vec_load(panel + v * LANES));
    word.lower[v] = whole ? bytes : numbers_in(kind, bytes, 0);
    word.upper[v] = whole ? bytes : numbers_in(kind, bytes, 1);
  }
  return word;
}

/* The sums of one group: whole numbers. A group is not unrolled: its instructions would come more slowly. */
INLINE void multiply_group(const enum kind kind, const size_t rows, const uint32_t *a, size_t stride,
                           const uint32_t *panel, vec_ints sums[GROUPED_ROWS][VECTORS])
{
  const int halved = is_halved(kind), whole = !halved && WHOLE_BYTES, halves = !halved && !WHOLE_BYTES;
  const size_t step = halved ? 2 : 1; /* words of activations for one of the weight */
  const size_t end = group_words(kind);
  vec_ints lower[GROUPED_ROWS][VECTORS], upper[GROUPED_ROWS][VECTORS];
#pragma GCC unroll 8
  for (size_t r = 0; r < rows; r++)
    for (size_t v = 0; v < VECTORS; v++)
      sums[r][v] = lower[r][v] = upper[r][v] = vec_as_ints(vec_zero());
  for (size_t begin = 0; begin < end; begin += paired(kind)) {
#pragma GCC unroll 2
    for (size_t k = begin; k < begin + paired(kind); k += step, panel += PANEL) {
      for (size_t line = 0; line < LINES; line++)
        PREFETCH(panel + AHEAD * PANEL + line * 16, NEAR);
      const struct unpacked word = unpack(kind, whole, panel);
#pragma GCC unroll 8
      for (size_t r = 0; r < rows; r++) {
        multiply_unsigned(lower[r], a + r * stride + k, word.lower);
        if (halved)
          multiply_unsigned(lower[r], a + r * stride + k + 1, word.upper);
        if (halves)
          multiply_unsigned(upper[r], a + r * stride + k, word.upper);
      }
    }
    const int adds = IN_PAIRS || begin + paired(kind) == end;
#pragma GCC unroll 8
    for (size_t r = 0; adds && r < rows; r++)
#pragma GCC unroll 4
      for (size_t v = 0; v < VECTORS; v++) {
        add_up(&sums[r][v], &lower[r][v], 1);
        if (halves)
          add_up(&sums[r][v], &upper[r][v], 16);
      }
  }
}

/* What shall come from memory while a tile is computed: where it begins, and cache lines with each group. The
 * tiles of a panel share the panel after it. */
struct ahead {
  const char *next;
  size_t lines;
};

static struct ahead share_of(const uint32_t *next_panel, size_t words, size_t groups,
                             const struct tiles *tiles, size_t tile)
{
  if (tiles->count == 1) /* AHEAD reaches into the next panel */
    return (struct ahead){NULL, 0};
  const size_t lines = (words / groups * LINES + tiles->count - 1) / tiles->count;
  return (struct ahead){(const char *)next_panel + tile * groups * lines * 64, lines};
}

/* out[rows][PANEL] = the sums of all groups, each times its scales, with its minima. */
INLINE void tile(const enum kind kind, const size_t rows, const uint32_t *a, size_t stride,
                 const uint32_t *panel, size_t groups, float *out, struct ahead ahead)
{
  const size_t words = group_size(kind) / kind_numbers(kind);
  const float *scales = (const float *)(a + groups * group_words(kind)), *totals = scales + groups;
  vec sums[GROUPED_ROWS][VECTORS];
#pragma GCC unroll 8
  for (size_t r = 0; r < rows; r++)
    for (size_t v = 0; v < VECTORS; v++)
      sums[r][v] = vec_zero();
  for (size_t g = 0; g < groups; g++, a += group_words(kind), panel += (words + 1) * PANEL) {
    vec_ints products[GROUPED_ROWS][VECTORS];
    for (size_t line = 0; line < ahead.lines; line++, ahead.next += 64)
      PREFETCH(ahead.next, FAR);
    multiply_group(kind, rows, a, stride, panel, products);
#pragma GCC unroll 4
    for (size_t v = 0; v < VECTORS; v++) {
      const uint32_t *words_of_group = panel + words * PANEL + v * LANES;
      const vec scale = group_scale(words_of_group), minimum = group_minimum(words_of_group);
#pragma GCC unroll 8
      for (size_t r = 0; r < rows; r++) {
        const vec both = vec_mul(scale, vec_of(scales[r * stride + g]));
        sums[r][v] = vec_fma(ints_to_floats(products[r][v]), both, sums[r][v]);
        sums[r][v] = vec_fma(minimum, vec_of(totals[r * stride + g]), sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < rows; r++)
    for (size_t v = 0; v < VECTORS; v++)
      vec_store(out + r * PANEL + v * LANES, sums[r][v]);
}

// clang-format off: it moves these lines at every run
#define CASE(kind, rows)                                                                             \
  case rows:                                                                                         \
    if (rows <= GROUPED_ROWS)                                                                        \
      tile(kind, rows, a, stride, panel, groups, sums, ahead);                                       \
    break;
/* One unrolled loop for each number of rows. */
#define TILE(name, kind)                                                                             \
  static __attribute__((noinline)) void name(size_t rows, const uint32_t *a, size_t stride,          \
                                             const uint32_t *panel, size_t groups, float *sums,      \
                                             struct ahead ahead)                                     \
  {                                                                                                  \
    switch (rows) {                                                                                  \
      CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4)                                        \
      CASE(kind, 5) CASE(kind, 6) CASE(kind, 7) CASE(kind, 8)                                        \
    }                                                                                                \
  }
// clang-format on
TILE(tile_g8, KIND_G8)
TILE(tile_g4, KIND_G4)
TILE(tile_g8_small, KIND_G8_SMALL)
TILE(tile_g4_small, KIND_G4_SMALL)
TILE(tile_e2m1, KIND_E2M1)
TILE(tile_g8_tiny, KIND_G8_TINY)

static void (*const tiles_of[])(size_t, const uint32_t *, size_t, const uint32_t *, size_t, float *,
                                struct ahead) = {tile_g8,       tile_g4,   tile_g8_small,
                                                 tile_g4_small, tile_e2m1, tile_g8_tiny};

void gemm_grouped(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                  size_t last, const struct result *result)
{
  const struct tiles tiles = tiles_begin(matrix->kind, rows);
  const size_t groups = group_count(matrix->kind, matrix->inputs);
  float sums[GROUPED_ROWS * PANEL] __attribute__((aligned(64)));
  for (size_t p = first; p < last; p++)
    for (size_t t = 0; t < tiles.count; t++) {
      const struct done done = {tile_at(&tiles, t), p * PANEL};
      const size_t begin = done.tile.begin, end = done.tile.end;
      const uint32_t *a = operand->words + begin * operand->stride;
      const uint32_t *panel = matrix->panels + p * matrix->words * PANEL;
      expect(result, begin, end, p * PANEL);
      const struct ahead ahead = share_of(panel + matrix->words * PANEL, matrix->words, groups, &tiles, t);
      tiles_of[matrix->kind - KIND_G8](end - begin, a, operand->stride, panel, groups, sums, ahead);
      finish_rows(matrix, operand, result, &done, begin, end, sums);
    }
}
