#include "attention.h"

static size_t up_to(size_t number, size_t multiple)
{
  return (number + multiple - 1) / multiple * multiple;
}

struct packed {
  uint32_t *keys;   /* [panel of 32 keys][word of a key][key] */
  uint32_t *values; /* [panel of 32 columns][word of keys][column] */
  float *scores;    /* [rows of a tile][keys up to whole panels] */
};

/* Words along the keys, of values and of scores once they are softened. AMX takes whole steps: of zeros
 * behind the last key. */
static size_t key_words(enum kind kind, size_t length)
{
  return kind_words(kind, by_amx(kind) ? up_to(length, PANEL) : length);
}

static struct packed divide(uint32_t *scratch, enum kind kind, size_t length, size_t size)
{
  struct packed packed = {.keys = scratch};
  packed.values = packed.keys + up_to(length, PANEL) * kind_words(kind, size);
  packed.scores = (float *)(packed.values + up_to(size, PANEL) * key_words(kind, length));
  return packed;
}

size_t attention_scratch(enum kind kind, size_t length, size_t size)
{
  const struct packed packed = divide(NULL, kind, length, size);
  return (size_t)((uint32_t *)packed.scores - (uint32_t *)NULL) + tile_rows(kind) * up_to(length, PANEL);
}

/* out[column][row] = the words of 16 rows; rows beyond `rows` and columns beyond `columns` count as zero. */
static void transpose(const uint32_t *in, size_t stride, size_t rows, size_t columns, uint32_t *out)
{
  __m512i x[16], y[16];
  const __mmask16 mask = lanes((long)columns);
  for (size_t r = 0; r < 16; r++)
    x[r] = r < rows ? _mm512_maskz_loadu_epi32(mask, in + r * stride) : _mm512_setzero_si512();
  for (size_t r = 0; r < 16; r += 2) { /* pairs of words, of two rows */
    y[r] = _mm512_unpacklo_epi32(x[r], x[r + 1]);
    y[r + 1] = _mm512_unpackhi_epi32(x[r], x[r + 1]);
  }
  for (size_t r = 0; r < 16; r += 4) { /* x[r + j]: words j, 4 + j, 8 + j, 12 + j of rows r .. r + 3 */
    x[r] = _mm512_unpacklo_epi64(y[r], y[r + 2]);
    x[r + 1] = _mm512_unpackhi_epi64(y[r], y[r + 2]);
    x[r + 2] = _mm512_unpacklo_epi64(y[r + 1], y[r + 3]);
    x[r + 3] = _mm512_unpackhi_epi64(y[r + 1], y[r + 3]);
  }
  for (size_t j = 0; j < 4; j++) { /* the 128-bit lanes of four registers are a 4 x 4 matrix of their own */
    const __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x44),
                  b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x44),
                  d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xee);
    y[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    y[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    y[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    y[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (size_t column = 0; column < 16 && column < columns; column++)
    _mm512_storeu_si512(out + column * PANEL, y[column]);
}

static void pack_keys(const struct head *head, uint32_t *out)
{
  const size_t words = kind_words(head->kind, head->size), stride = kind_words(head->kind, head->stride);
  const uint32_t *keys = head->key;
  for (size_t key = 0; key < up_to(head->length, PANEL); key += 16)
    for (size_t word = 0; word < words; word += 16)
      transpose(keys + key * stride + word, stride, key < head->length ? head->length - key : 0, words - word,
                out + (key / PANEL * words + word) * PANEL + key % PANEL);
}

static void pack_values(const struct head *head, uint32_t *out)
{
  const size_t step = kind_numbers(head->kind), words = key_words(head->kind, head->length);
  for (size_t column = 0; column < up_to(head->size, PANEL); column += 16) {
    const __mmask16 mask = lanes((long)(head->size - column));
    uint32_t *panel = out + column / PANEL * words * PANEL + column % PANEL;
    for (size_t row = 0; row < head->length; row += step, panel += PANEL) {
      __m512i word;
      if (head->kind == KIND_F32) {
        word = _mm512_maskz_loadu_epi32(mask, (const uint32_t *)head->value + row * head->stride + column);
      } else { /* two keys' numbers side by side */
        const uint16_t *low = (const uint16_t *)head->value + row * head->stride + column;
        const __mmask16 second = row + 1 < head->length ? mask : 0;
        word = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, low));
        word = _mm512_or_si512(
            word, _mm512_slli_epi32(
                      _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, low + head->stride)), 16));
      }
      _mm512_storeu_si512(panel, word);
    }
    for (size_t word = kind_words(head->kind, head->length); word < words; word++, panel += PANEL)
      _mm512_storeu_si512(panel, _mm512_setzero_si512());
  }
}

/* Keys [from, to) of those that can be seen: the ones that a query sees. */
struct span {
  size_t from, to;
};

/* Query and window count all tokens of the sequence, keys only those that can be seen. */
static struct span span_of(const struct head *head, size_t query)
{
  if (head->window == SIZE_MAX)
    return (struct span){0, head->length};
  const size_t begin = query > head->window ? query - head->window : 0, end = query + head->window + 1;
  const size_t from = begin > head->skipped ? begin - head->skipped : 0;
  const size_t to = end > head->skipped ? end - head->skipped : 0;
  return (struct span){from, to < head->length ? to : head->length};
}

INLINE __mmask16 seen(struct span span, size_t key)
{
  return lanes((long)span.to - (long)key) & ~lanes((long)span.from - (long)key);
}

/* The largest score that is seen, times `scale`, which is then that of all scores: 1 where a bias was added.
 */
static float scale_and_bias(const struct head *head, size_t query, struct span span, float *scores,
                            float *scale)
{
  __m512 highest = _mm512_set1_ps(-__builtin_inff());
  *scale = head->scale;
  if (head->bias == NULL && head->scale > 0) {
    for (size_t key = span.from / 16 * 16; key < span.to; key += 16)
      highest = _mm512_mask_max_ps(highest, seen(span, key), highest, _mm512_loadu_ps(scores + key));
    return _mm512_reduce_max_ps(highest) * head->scale;
  }
  const float *bias = head->bias == NULL ? NULL : head->bias + query * head->bias_stride + head->skipped;
  for (size_t key = span.from / 16 * 16; key < span.to; key += 16) {
    __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + key), _mm512_set1_ps(head->scale));
    if (bias != NULL)
      score = _mm512_add_ps(score, _mm512_maskz_loadu_ps(seen(span, key), bias + key));
    _mm512_storeu_ps(scores + key, score);
    highest = _mm512_mask_max_ps(highest, seen(span, key), highest, score);
  }
  *scale = 1;
  return _mm512_reduce_max_ps(highest);
}

/* Scores become e^(score - highest), in the head's type and in place; returns 1 / their sum. */
INLINE float soften(const int bf16, const struct head *head, size_t query, float *scores)
{
  const struct span span = span_of(head, query);
  const float log2e = 1.44269504f;
  float scale;
  const float highest = scale_and_bias(head, query, span, scores, &scale);
  const __m512 factor = _mm512_set1_ps(bf16 ? scale * log2e : scale);
  const __m512 top = _mm512_set1_ps(bf16 ? highest * log2e : highest);
  __m512 sum = _mm512_setzero_ps();
  for (size_t key = 0; key < up_to(head->length, PANEL); key += 16) {
    const __mmask16 mask = seen(span, key);
    __m512 weight = _mm512_setzero_ps();
    if (mask) {
      const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + key), factor, top);
      weight = _mm512_maskz_mov_ps(mask, bf16 ? rough_power(x) : vector_exp(x));
    }
    sum = _mm512_add_ps(sum, weight);
    store_floats(scores, key, 0xffff, bf16, weight);
  }
  const float total = _mm512_reduce_add_ps(sum);
  return total == 0 ? 0 : 1.f / total; /* a query that sees nothing */
}

void attention_head(const struct head *head, size_t first, size_t last, void *out, size_t out_stride,
                    uint32_t *scratch)
{
  const struct packed packed = divide(scratch, head->kind, head->length, head->size);
  const size_t words = kind_words(head->kind, head->size), keys = key_words(head->kind, head->length);
  const size_t stride = kind_words(head->kind, head->stride), width = up_to(head->length, PANEL);
  const size_t bytes = sizeof(uint32_t) >> head->kind; /* of a number */
  float sums[MOST_TILE_ROWS * PANEL] __attribute__((aligned(64)));
  pack_keys(head, packed.keys);
  pack_values(head, packed.values);
  const int relative = is_relative(&head->relative);
  struct distances distances = {0};
  if (relative)
    distances = relative_begin(head, first, last,
                               (float *)scratch + attention_scratch(head->kind, head->length, head->size));
  const struct tiles tiles = tiles_begin(head->kind, last - first);
  for (size_t t = 0; t < tiles.count; t++) {
    const struct tile tile = tile_at(&tiles, t);
    const size_t begin = first + tile.begin, end = first + tile.end;
    const uint32_t *queries = (const uint32_t *)head->query + begin * stride;
    float factors[MOST_TILE_ROWS];
    for (size_t key = 0; key < width; key += PANEL)
      gemm_tile(&tiles, &tile, queries, stride, packed.keys + key * words, words, packed.scores + key, width);
    if (relative)
      relative_add(head, &distances, &tiles, &tile, begin, packed.scores, width);
    for (size_t row = begin; row < end; row++)
      factors[row - begin] = head->kind == KIND_BF16
                                 ? soften(1, head, row, packed.scores + (row - begin) * width)
                                 : soften(0, head, row, packed.scores + (row - begin) * width);
    for (size_t column = 0; column < head->size; column += PANEL) {
      gemm_tile(&tiles, &tile, (const uint32_t *)packed.scores, width, packed.values + column * keys, keys,
                sums, PANEL);
      for (size_t row = begin; row < end; row++)
        for (size_t half = 0; half < PANEL; half += 16) {
          const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(sums + (row - begin) * PANEL + half),
                                         _mm512_set1_ps(factors[row - begin]));
          store_floats((char *)out + (row - first) * out_stride * bytes, column + half,
                       lanes((long)(head->size - column - half)), head->kind == KIND_BF16, x);
        }
    }
  }
  tiles_end(&tiles);
}

/* The mean of 16 columns of all rows of a sequence. */
static __m512 mean(const struct head *head, size_t rows, size_t column, __mmask16 mask)
{
  const size_t bytes = sizeof(uint32_t) >> head->kind;
  const char *values = (const char *)head->value - head->skipped * head->stride * bytes;
  __m512 sum = _mm512_setzero_ps();
  for (size_t row = 0; row < rows; row++)
    sum = _mm512_add_ps(
        sum, load_floats(values + row * head->stride * bytes, column, mask, head->kind == KIND_BF16));
  return _mm512_div_ps(sum, _mm512_set1_ps((float)rows));
}

void attention_mean(const struct head *head, size_t rows, size_t first, size_t last, void *out,
                    size_t out_stride)
{
  const size_t bytes = sizeof(uint32_t) >> head->kind, end = head->skipped + head->length;
  if (first >= head->skipped && last <= end)
    return;
  for (size_t column = 0; column < head->size; column += 16) {
    const __mmask16 mask = lanes((long)(head->size - column));
    const __m512 x = mean(head, rows, column, mask);
    for (size_t row = first; row < last; row++)
      if (row < head->skipped || row >= end)
        store_floats((char *)out + (row - first) * out_stride * bytes, column, mask, head->kind == KIND_BF16,
                     x);
  }
}
