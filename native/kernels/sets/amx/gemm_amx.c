#include "gemm_amx.h"

#include "finish.h"

/* AMX multiplies while the vector units finish the tile before: a part of the one after a part of the other,
 * so that the CPU, which looks a few hundred instructions ahead, sees both. */
void gemm_by_amx(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                 size_t last, const struct result *result)
{
  enum { PART = 2 * AMX_WORDS };
  const struct tiles tiles = tiles_begin(matrix->kind, rows);
  const size_t words = matrix->words, parts = (words + PART - 1) / PART;
  const size_t lines =
      (AMX_WORDS * PANEL * sizeof(uint32_t) / 64 + tiles.count - 1) / (tiles.count ? tiles.count : 1);
  float sums[AMX_ROWS * PANEL] __attribute__((aligned(64)));
  struct done done = {{0, 0, 0}, 0};
  for (size_t p = first; p < last; p++)
    for (size_t t = 0; t < tiles.count; t++) {
      const struct tile tile = tile_at(&tiles, t);
      const uint32_t *panel = matrix->panels + p * words * PANEL;
      const uint32_t *a = operand->words + tile.begin * operand->stride;
      struct amx_ahead ahead = {(const char *)(panel + words * PANEL) + words / AMX_WORDS * lines * 64 * t,
                                lines};
      const size_t left = done.tile.end - done.tile.first;
      expect(result, tile.first, tile.end, p * PANEL);
      amx_clear();
      for (size_t part = 0; part < parts; part++) {
        const size_t k = part * PART;
        amx_multiply(matrix->kind == KIND_I8, tiles.height, a + k, operand->stride, panel + k * PANEL,
                     words - k < PART ? words - k : PART, &ahead);
        finish_rows(matrix, operand, result, &done, done.tile.first + left * part / parts,
                    done.tile.first + left * (part + 1) / parts, sums);
      }
      amx_store(tiles.height, sums, PANEL);
      done = (struct done){tile, p * PANEL};
    }
  finish_rows(matrix, operand, result, &done, done.tile.first, done.tile.end, sums);
  tiles_end(&tiles);
}

/* Some numbers of a panel along the summed dimension, and where their parts go. */
enum { SPLIT_NUMBERS = 128, SPLIT_WORDS = SPLIT_NUMBERS / 2, MOST_TILES = 8 };

struct piece {
  const uint32_t *numbers; /* [count][PANEL] */
  size_t count;
  size_t words;    /* of bfloat16: whole steps of AMX */
  uint32_t *parts; /* [SPLIT][SPLIT_WORDS][PANEL] */
};

/* Of each panel. */
static size_t pieces_of(const struct matrix *matrix)
{
  return (matrix->words + SPLIT_NUMBERS - 1) / SPLIT_NUMBERS;
}

static struct piece piece_at(const struct matrix *matrix, size_t number, uint32_t *parts)
{
  const size_t pieces = pieces_of(matrix);
  const size_t k = number % pieces * SPLIT_NUMBERS, left = matrix->words - k;
  const size_t count = left < SPLIT_NUMBERS ? left : SPLIT_NUMBERS;
  return (struct piece){matrix->panels + (number / pieces * matrix->words + k) * PANEL, count,
                        (count + 2 * AMX_WORDS - 1) / (2 * AMX_WORDS) * AMX_WORDS, parts};
}

/* Words [begin, end) of a piece's parts, with zeros behind the last number. */
static void split_words(const struct piece *piece, size_t begin, size_t end)
{
  const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
  for (size_t word = begin; word < end; word++)
    for (size_t column = 0; column < PANEL; column += 16) {
      const uint32_t *place = piece->numbers + 2 * word * PANEL + column;
      _mm_prefetch((const char *)(place + SPLIT_NUMBERS * PANEL), _MM_HINT_T1); /* of the piece after */
      _mm_prefetch((const char *)(place + (SPLIT_NUMBERS + 1) * PANEL), _MM_HINT_T1);
      __m512 low = _mm512_maskz_loadu_ps(2 * word < piece->count ? 0xffff : 0, place);
      __m512 high = _mm512_maskz_loadu_ps(2 * word + 1 < piece->count ? 0xffff : 0, place + PANEL);
      for (size_t p = 0; p < SPLIT; p++) {
        const __m512i a = _mm512_castps_si512(low), b = _mm512_and_si512(_mm512_castps_si512(high), upper);
        _mm512_storeu_si512(piece->parts + (p * SPLIT_WORDS + word) * PANEL + column,
                            _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
      }
    }
}

/* Panels [first, last) times at most MOST_TILES tiles of rows. Piece by piece, so that each is split once;
 * while AMX multiplies one, the vector units split the next and finish the tiles of the panel before. */
static void split_by_tiles(const struct matrix *matrix, const struct operand *operand,
                           const struct tiles *tiles, size_t first, size_t last, const struct result *result)
{
  uint32_t parts[2][SPLIT * SPLIT_WORDS * PANEL] __attribute__((aligned(64)));
  float sums[MOST_TILES][AMX_ROWS * PANEL] __attribute__((aligned(64)));
  const size_t pieces = pieces_of(matrix), end = last * pieces;
  struct piece next = piece_at(matrix, first * pieces, parts[0]);
  split_words(&next, 0, next.words);
  for (size_t number = first * pieces; number < end; number++) {
    const struct piece piece = next;
    next = piece_at(matrix, number + 1 < end ? number + 1 : number, parts[(number + 1 - first * pieces) % 2]);
    const size_t k = number % pieces * SPLIT_WORDS, steps = piece.words / AMX_WORDS;
    for (size_t t = 0; t < tiles->count; t++) {
      const struct tile tile = tile_at(tiles, t);
      const uint32_t *a = operand->words + tile.begin * operand->stride + k;
      const struct done before = {tile, (number / pieces - 1) * PANEL};
      const size_t rows = tile.end - tile.first;
      if (k == 0)
        amx_clear();
      else
        amx_load(tiles->height, sums[t], PANEL);
      for (size_t s = 0; s < steps; s++) {
        const size_t turn = t * steps + s, turns = tiles->count * steps;
        amx_multiply_split(tiles->height, a + s * AMX_WORDS, operand->stride, operand->part,
                           piece.parts + s * AMX_WORDS * PANEL, SPLIT_WORDS * PANEL, AMX_WORDS);
        split_words(&next, next.words * turn / turns, next.words * (turn + 1) / turns);
        if (k == 0 && number / pieces > first)
          finish_rows(matrix, operand, result, &before, tile.first + rows * s / steps,
                      tile.first + rows * (s + 1) / steps, sums[t]);
      }
      amx_store(tiles->height, sums[t], PANEL);
    }
  }
  for (size_t t = 0; first < last && t < tiles->count; t++) {
    const struct done done = {tile_at(tiles, t), (last - 1) * PANEL};
    finish_rows(matrix, operand, result, &done, done.tile.first, done.tile.end, sums[t]);
  }
}

void skip_rows(struct operand *operand, struct result *result, size_t rows)
{
  const size_t size = result->bf16 ? sizeof(uint16_t) : sizeof(float);
  operand->words += rows * operand->stride;
  result->rows = (char *)result->rows + rows * result->stride * size;
  if (result->factor != NULL)
    result->factor += rows * result->factor_stride;
  if (result->addend_index != NULL)
    result->addend_index += rows;
  else if (result->addend != NULL)
    result->addend += rows * result->addend_stride;
}

void gemm_by_parts(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first,
                   size_t last, const struct result *result)
{
  enum { MOST = MOST_TILES * AMX_ROWS };
  struct operand some = *operand;
  struct result becomes = *result;
  const size_t groups = (rows + MOST - 1) / MOST;
  for (size_t g = 0; g < groups; g++) {
    const size_t count = rows * (g + 1) / groups - rows * g / groups;
    const struct tiles tiles = tiles_begin(KIND_BF16, count);
    split_by_tiles(matrix, &some, &tiles, first, last, &becomes);
    tiles_end(&tiles);
    skip_rows(&some, &becomes, count);
  }
}
