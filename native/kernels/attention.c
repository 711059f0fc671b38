#include "attention.h"

#include <math.h>

#include "rows.h"

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

/* out[column][row] = the words of LANES rows, `stride` bytes apart, or with `widens` the floats of as many
 * bfloat16; rows beyond `rows` and columns beyond `columns` count as zero. */
static void transpose(const char *in, int widens, size_t stride, size_t rows, size_t columns, uint32_t *out)
{
  vec x[LANES];
  const vec_mask some = lanes((long)columns);
  for (size_t r = 0; r < LANES; r++)
    x[r] = r < rows ? load_floats(in + r * stride, 0, some, widens) : vec_zero();
  words_transpose(x);
  for (size_t column = 0; column < LANES && column < columns; column++)
    vec_store(out + column * PANEL, x[column]);
}

static void pack_keys(const struct head *head, uint32_t *out)
{
  const size_t words = kind_words(head->kind, head->size), bytes = number_bytes(head->number);
  const size_t stride = head->key_stride * bytes;
  const int widens = head->number == NUMBER_BF16 && head->kind == KIND_F32;
  const size_t step = widens ? bytes : sizeof(uint32_t); /* of a word */
  for (size_t key = 0; key < up_to(head->length, PANEL); key += LANES)
    for (size_t word = 0; word < words; word += LANES)
      transpose((const char *)head->key + key * stride + word * step, widens, stride,
                key < head->length ? head->length - key : 0, words - word,
                out + (key / PANEL * words + word) * PANEL + key % PANEL);
}

static void pack_values(const struct head *head, uint32_t *out)
{
  const size_t step = kind_numbers(head->kind), words = key_words(head->kind, head->length);
  for (size_t column = 0; column < up_to(head->size, PANEL); column += LANES) {
    const vec_mask some = lanes((long)head->size - (long)column);
    uint32_t *panel = out + column / PANEL * words * PANEL + column % PANEL;
    for (size_t row = 0; row < head->length; row += step, panel += PANEL) {
      const uint16_t *low = (const uint16_t *)head->value + row * head->key_stride + column;
      const vec_mask second = row + 1 < head->length ? some : lanes(0);
      if (head->kind == KIND_F32)
        vec_store(panel, load_floats(head->value, row * head->key_stride + column, some, head->number));
      else /* two keys' numbers side by side */
        vec_store(panel, words_of_pairs(low, some, low + head->key_stride, second));
    }
    for (size_t word = kind_words(head->kind, head->length); word < words; word++, panel += PANEL)
      vec_store(panel, vec_zero());
  }
}

static size_t widened_words(enum kind kind, size_t length, size_t size)
{
  return kind_words(kind, length * size);
}

size_t widened_scratch(enum kind kind, size_t length, size_t size)
{
  return 2 * widened_words(kind, length, size);
}

static void widen_rows(const struct head *head, const void *from, void *to)
{
  const size_t bytes = operand_bytes(head->kind) * head->size; /* of a row */
  for (size_t row = 0; row < head->length; row++) {
    const char *place = (const char *)from + row * head->key_stride;
    const vec factor = vec_of(row_factor(place, head->size, NUMBER_I8));
    for (size_t i = 0; i < head->size; i += LANES) {
      const vec_mask some = lanes((long)(head->size - i));
      store_floats((char *)to + row * bytes, i, some, head->kind == KIND_BF16,
                   vec_mul(load_floats(place, i, some, NUMBER_I8), factor));
    }
  }
}

/* The head with keys and values that are as wide as what multiplies them. */
static struct head widened(const struct head *head, uint32_t *scratch)
{
  struct head wide = *head;
  uint32_t *values = scratch + widened_words(head->kind, head->length, head->size);
  if (head->number != NUMBER_I8)
    return wide;
  widen_rows(head, head->key, scratch);
  widen_rows(head, head->value, values);
  wide.number = head->kind == KIND_BF16 ? NUMBER_BF16 : NUMBER_F32;
  wide.key = scratch;
  wide.value = values;
  wide.key_stride = head->size;
  return wide;
}

/* Keys [from, to) of those that can be seen: the ones that a query sees. */
struct span {
  size_t from, to;
};

/* Query and window count all tokens of the sequence, keys only those that can be seen. */
static struct span span_of(const struct head *head, size_t query)
{
  if (head->window == SIZE_MAX && !head->causal)
    return (struct span){0, head->length};
  const size_t place = head->past + query, after = head->causal ? 0 : head->window;
  const size_t begin = place > head->window ? place - head->window : 0, end = place + after + 1;
  const size_t from = begin > head->skipped ? begin - head->skipped : 0;
  const size_t to = end > head->skipped ? end - head->skipped : 0;
  return (struct span){from, to < head->length ? to : head->length};
}

INLINE vec_mask seen(struct span span, size_t key)
{
  return mask_except(lanes((long)span.to - (long)key), lanes((long)span.from - (long)key));
}

/* The largest score that is seen, times `scale`, which is then that of all scores: 1 where they were written
 * anew. */
static float scale_and_bias(const struct head *head, size_t query, struct span span, float *scores,
                            float *scale)
{
  vec highest = vec_of(-__builtin_inff());
  *scale = head->scale;
  if (head->bias == NULL && head->scale > 0 && head->softcap <= 0) {
    for (size_t key = span.from / LANES * LANES; key < span.to; key += LANES)
      highest = vec_select(seen(span, key), vec_max(highest, vec_load(scores + key)), highest);
    return vec_highest(highest) * head->scale;
  }
  const float *bias = head->bias == NULL ? NULL : head->bias + query * head->bias_stride + head->skipped;
  for (size_t key = span.from / LANES * LANES; key < span.to; key += LANES) {
    vec score = vec_mul(vec_load(scores + key), vec_of(head->scale));
    if (head->softcap > 0)
      score = capped(head->softcap, score);
    if (bias != NULL)
      score = vec_add(score, vec_load_some(bias + key, seen(span, key)));
    vec_store(scores + key, score);
    highest = vec_select(seen(span, key), vec_max(highest, score), highest);
  }
  *scale = 1;
  return vec_highest(highest);
}

/* Scores become e^(score - highest), in the head's type and in place; returns 1 / their sum. */
INLINE float soften(const int bf16, const struct head *head, size_t query, float *scores)
{
  const struct span span = span_of(head, query);
  const float log2e = 1.44269504f;
  float scale;
  const float sink = head->sinks == NULL ? -__builtin_inff() : *head->sinks;
  const float highest = fmaxf(scale_and_bias(head, query, span, scores, &scale), sink);
  const vec factor = vec_of(bf16 ? scale * log2e : scale);
  const vec below = vec_of(bf16 ? -highest * log2e : -highest);
  vec sum = vec_zero();
  for (size_t key = 0; key < up_to(head->length, PANEL); key += LANES) {
    const vec_mask some = seen(span, key);
    vec weight = vec_zero();
    if (mask_any(some)) {
      const vec x = vec_fma(vec_load(scores + key), factor, below);
      weight = vec_select(some, bf16 ? rough_power(x) : vector_exp(x), vec_zero());
    }
    sum = vec_add(sum, weight);
    store_floats(scores, key, lanes(LANES), bf16, weight);
  }
  const float total = vec_sum(sum) + (head->sinks == NULL ? 0 : expf(sink - highest));
  return total == 0 ? 0 : 1.f / total; /* a query that sees nothing */
}

void attention_head(const struct head *head, size_t first, size_t last, void *out, size_t out_stride,
                    uint32_t *scratch)
{
  const struct packed packed = divide(scratch, head->kind, head->length, head->size);
  const size_t words = kind_words(head->kind, head->size), keys = key_words(head->kind, head->length);
  const size_t stride = kind_words(head->kind, head->stride), width = up_to(head->length, PANEL);
  const size_t bytes = operand_bytes(head->kind); /* of a number */
  float sums[MOST_TILE_ROWS * PANEL] __attribute__((aligned(64)));
  const struct head wide = widened(head, scratch + attention_scratch(head->kind, head->length, head->size));
  pack_keys(&wide, packed.keys);
  pack_values(&wide, packed.values);
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
        for (size_t part = 0; part < PANEL; part += LANES) {
          const vec x = vec_mul(vec_load(sums + (row - begin) * PANEL + part), vec_of(factors[row - begin]));
          store_floats((char *)out + (row - first) * out_stride * bytes, column + part,
                       lanes((long)head->size - (long)(column + part)), head->kind == KIND_BF16, x);
        }
    }
  }
  tiles_end(&tiles);
}

/* The mean of LANES columns of all rows of a sequence. */
static vec mean(const struct head *head, struct span rows, size_t column, vec_mask some)
{
  const size_t bytes = head->key_stride * number_bytes(head->number);
  const char *value = (const char *)head->value - head->skipped * bytes + rows.from * bytes;
  vec sum = vec_zero();
  for (size_t row = rows.from; row < rows.to; row++, value += bytes)
    sum = vec_fma(load_floats(value, column, some, head->number),
                  vec_of(row_factor(value, head->size, head->number)), sum);
  return vec_div(sum, vec_of((float)(rows.to - rows.from)));
}

/* A row of padding and those before it that its window shows. */
static struct span before(const struct head *head, size_t query)
{
  const size_t place = head->past + query;
  return (struct span){place > head->window ? place - head->window : 0, place + 1};
}

void attention_mean(const struct head *head, size_t rows, size_t first, size_t last, void *out,
                    size_t out_stride)
{
  const size_t bytes = operand_bytes(head->kind);
  /* a causal head's queries behind the last key see those before */
  const size_t end = head->causal ? SIZE_MAX : head->skipped + head->length;
  if (head->past + first >= head->skipped && head->past + last <= end)
    return;
  for (size_t column = 0; column < head->size; column += LANES) {
    const vec_mask some = lanes((long)(head->size - column));
    vec x = rows == 0 ? vec_zero() : mean(head, (struct span){0, rows}, column, some);
    for (size_t row = first; row < last; row++)
      if (head->past + row < head->skipped || head->past + row >= end) {
        x = rows == 0 ? mean(head, before(head, row), column, some) : x;
        store_floats((char *)out + (row - first) * out_stride * bytes, column, some, head->kind == KIND_BF16,
                     x);
      }
  }
}
