/* Many rows times a weight in groups: some groups of a panel are unpacked to bfloat16 and multiplied by all
 * rows before the next ones, so that what is unpacked stays in the first-level cache. */
#include "finish.h"
#include "gemm_amx.h"
#include "gemm_grouped.h"

enum { PIECE = 4, PIECE_WORDS = PIECE * GROUP / 2, MOST_TILES = 8 }; /* groups; words of bfloat16 */

/* Four bytes of LANES columns, as two words of bfloat16 for each column. */
static void unpack_bytes(__m512i bytes, __m512 scale, __m512 minimum, uint32_t *out)
{
  __m512 numbers[4];
  for (unsigned i = 0; i < 4; i++) {
    const __m512i q = ints_and(_mm512_srlv_epi32(bytes, ints_of((int)(8 * i))), ints_of(0xff));
    numbers[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, minimum);
  }
  for (size_t word = 0; word < 2; word++) {
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(numbers[2 * word]);
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(numbers[2 * word + 1]);
    const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    _mm512_storeu_si512(out + word * PANEL, _mm512_or_si512(_mm512_cvtepu16_epi32(low), upper));
  }
}

/* out[group_size(kind) / 2][PANEL] */
static void unpack_group(enum kind kind, const uint32_t *panel, uint32_t *out)
{
  const size_t words = group_size(kind) / kind_numbers(kind), parts = is_halved(kind) ? 2 : 1;
  for (size_t column = 0; column < PANEL; column += LANES) {
    const vec scale = group_scale(panel + words * PANEL + column);
    const vec minimum = group_minimum(panel + words * PANEL + column);
    for (size_t k = 0; k < words; k++) {
      const __m512i word = vec_as_ints(vec_load(panel + k * PANEL + column));
      for (size_t part = 0; part < parts; part++)
        unpack_bytes(is_halved(kind) ? numbers_in(kind, word, part == 1) : word, scale, minimum,
                     out + 2 * (k * parts + part) * PANEL + column);
    }
  }
}

/* One panel times at most MOST_TILES tiles of rows. */
static void multiply_panel(const struct matrix *matrix, const struct operand *operand,
                           const struct tiles *tiles, const uint32_t *panel,
                           float sums[MOST_TILES][AMX_ROWS * PANEL])
{
  uint32_t words[PIECE_WORDS * PANEL] __attribute__((aligned(64)));
  const size_t groups = group_count(matrix->kind, matrix->inputs), step = matrix->words / groups * PANEL;
  const size_t pairs = group_size(matrix->kind) / 2; /* words of bfloat16 of a group */
  struct amx_ahead nothing = {NULL, 0};
  for (size_t g = 0; g < groups; g += PIECE) {
    const size_t count = groups - g < PIECE ? groups - g : PIECE;
    for (size_t i = 0; i < count; i++)
      unpack_group(matrix->kind, panel + (g + i) * step, words + i * pairs * PANEL);
    for (size_t t = 0; t < tiles->count; t++) {
      const uint32_t *a = operand->words + tile_at(tiles, t).begin * operand->stride + g * pairs;
      if (g == 0)
        amx_clear();
      else
        amx_load(tiles->height, sums[t], PANEL);
      amx_multiply(0, tiles->height, a, operand->stride, words, count * pairs, &nothing);
      amx_store(tiles->height, sums[t], PANEL);
    }
  }
}

void gemm_by_unpacking(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                       size_t last, const struct result *result)
{
  enum { MOST = MOST_TILES * AMX_ROWS };
  float sums[MOST_TILES][AMX_ROWS * PANEL] __attribute__((aligned(64)));
  struct operand some = *operand;
  struct result becomes = *result;
  const size_t parts = (rows + MOST - 1) / MOST;
  for (size_t part = 0; part < parts; part++) {
    const size_t count = rows * (part + 1) / parts - rows * part / parts;
    const struct tiles tiles = tiles_begin(KIND_BF16, count);
    for (size_t p = first; p < last; p++) {
      multiply_panel(matrix, &some, &tiles, matrix->panels + p * matrix->words * PANEL, sums);
      for (size_t t = 0; t < tiles.count; t++) {
        const struct done done = {tile_at(&tiles, t), p * PANEL};
        finish_rows(matrix, &some, &becomes, &done, done.tile.first, done.tile.end, sums[t]);
      }
    }
    tiles_end(&tiles);
    skip_rows(&some, &becomes, count);
  }
}
