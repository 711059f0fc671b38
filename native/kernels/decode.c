#include "decode.h"

#include <string.h>

#include "rows.h"

size_t decode_stride(size_t head_size)
{
  return (head_size + LANES - 1) / LANES * LANES;
}

size_t decode_scratch(size_t queries, size_t head_size)
{
  return queries * (decode_stride(head_size) + DECODE_KEYS);
}

/* The queries as floats, times the scale, with zeros behind them. */
static void scale_queries(const struct head *head, size_t queries, float *out)
{
  const size_t stride = decode_stride(head->size);
  const int bf16 = head->kind == KIND_BF16;
  for (size_t q = 0; q < queries; q++)
    for (size_t i = 0; i < stride; i += LANES) {
      const vec_mask some = lanes((long)head->size - (long)i);
      const vec x = load_floats(head->query, q * head->size + i, some, bf16);
      vec_store(out + q * stride + i, vec_mul(x, vec_of(head->scale)));
    }
}

enum { KEYS_AT_ONCE = 4 }; /* whose sums are in registers together */

/* out[key] = query key^T for some keys. */
INLINE void score(const enum number number, const size_t keys, const struct head *head, const char *key,
                  const float *query, float *out)
{
  const size_t bytes = head->key_stride * number_bytes(number);
  vec sums[KEYS_AT_ONCE];
#pragma GCC unroll 4
  for (size_t k = 0; k < keys; k++)
    sums[k] = vec_zero();
  for (size_t i = 0; i < head->size; i += LANES) {
    const vec_mask some = lanes((long)(head->size - i));
    const vec q = vec_load(query + i);
#pragma GCC unroll 4
    for (size_t k = 0; k < keys; k++)
      sums[k] = vec_fma(q, load_floats(key + k * bytes, i, some, number), sums[k]);
  }
#pragma GCC unroll 4
  for (size_t k = 0; k < keys; k++)
    out[k] = vec_sum(sums[k]) * row_factor(key + k * bytes, head->size, number);
}

/* scores[query][DECODE_KEYS] of `count` keys from `first` on. */
INLINE void score_block(const enum number number, const struct head *head, size_t queries, size_t first,
                        size_t count, const float *query, float *scores)
{
  const size_t stride = decode_stride(head->size), bytes = head->key_stride * number_bytes(number);
  const char *keys = (const char *)head->key + first * bytes;
  for (size_t k = 0; k < count; k += KEYS_AT_ONCE, keys += KEYS_AT_ONCE * bytes)
    for (size_t q = 0; q < queries; q++) {
      float *out = scores + q * DECODE_KEYS + k;
      if (count - k >= KEYS_AT_ONCE)
        score(number, KEYS_AT_ONCE, head, keys, query + q * stride, out);
      else
        for (size_t rest = 0; rest < count - k; rest++)
          score(number, 1, head, keys + rest * bytes, query + q * stride, out + rest);
    }
}

static void cap_block(float softcap, size_t count, float *scores)
{
  for (size_t k = 0; k < count; k += LANES) {
    const vec_mask some = lanes((long)(count - k)); /* what lies behind them may be anything */
    vec_store_some(scores + k, some, capped(softcap, vec_load_some(scores + k, some)));
  }
}

/* `bias`: of these keys. */
static void bias_block(const float *bias, size_t count, float *scores)
{
  for (size_t k = 0; k < count; k += LANES) {
    const vec_mask some = lanes((long)(count - k));
    vec_store_some(scores + k, some, vec_add(vec_load_some(scores + k, some), vec_load_some(bias + k, some)));
  }
}

/* e^x in a single float. */
static float exponential(float x)
{
  float result[LANES];
  vec_store(result, vector_exp(vec_of(x)));
  return result[0];
}

/* Scores become e^(score - highest), and what was summed before is brought to the same highest. */
static void soften(float *scores, size_t count, size_t stride, float *highest, float *sum, float *values)
{
  vec most = vec_of(*highest);
  for (size_t k = 0; k < count; k += LANES) {
    const vec_mask some = lanes((long)(count - k));
    most = vec_select(some, vec_max(most, vec_load(scores + k)), most);
  }
  const float before = *highest, now = vec_highest(most);
  vec total = vec_zero();
  for (size_t k = 0; k < DECODE_KEYS; k += LANES) {
    const vec x = vector_exp(vec_sub(vec_load(scores + k), vec_of(now)));
    const vec weight = vec_select(lanes((long)count - (long)k), x, vec_zero());
    vec_store(scores + k, weight);
    total = vec_add(total, weight);
  }
  const float factor = exponential(before - now);
  *sum = *sum * factor + vec_sum(total);
  *highest = now;
  for (size_t i = 0; before != now && i < stride; i += LANES)
    vec_store(values + i, vec_mul(vec_load(values + i), vec_of(factor)));
}

enum { QUERIES_AT_ONCE = 4 };

/* values[query] += weights[query][key] value[key], for LANES columns of some queries. */
INLINE void add_values(const enum number number, const size_t queries, const struct head *head,
                       const char *value, size_t count, size_t column, const float *weights, float *values,
                       size_t stride)
{
  const vec_mask some = lanes((long)(head->size - column));
  const size_t bytes = head->key_stride * number_bytes(number);
  vec sums[QUERIES_AT_ONCE];
#pragma GCC unroll 4
  for (size_t q = 0; q < queries; q++)
    sums[q] = vec_load(values + q * stride + column);
  for (size_t k = 0; k < count; k++, value += bytes) {
    const vec x = load_floats(value, column, some, number);
#pragma GCC unroll 4
    for (size_t q = 0; q < queries; q++)
      sums[q] = vec_fma(vec_of(weights[q * DECODE_KEYS + k]), x, sums[q]);
  }
#pragma GCC unroll 4
  for (size_t q = 0; q < queries; q++)
    vec_store(values + q * stride + column, sums[q]);
}

/* The weights of values that are bytes: times their factors. */
static void weigh_bytes(const struct head *head, size_t queries, size_t first, size_t count, float *weights)
{
  const char *value = (const char *)head->value + first * head->key_stride;
  for (size_t k = 0; k < count; k++, value += head->key_stride) {
    const float factor = row_factor(value, head->size, NUMBER_I8);
    for (size_t q = 0; q < queries; q++)
      weights[q * DECODE_KEYS + k] *= factor;
  }
}

INLINE void add_block(const enum number number, const struct head *head, size_t queries, size_t first,
                      size_t count, const float *weights, float *values)
{
  const size_t stride = decode_stride(head->size);
  const char *value = (const char *)head->value + first * head->key_stride * number_bytes(number);
  for (size_t column = 0; column < head->size; column += LANES) {
    size_t q = 0;
    for (; q + QUERIES_AT_ONCE <= queries; q += QUERIES_AT_ONCE)
      add_values(number, QUERIES_AT_ONCE, head, value, count, column, weights + q * DECODE_KEYS,
                 values + q * stride, stride);
    for (; q < queries; q++)
      add_values(number, 1, head, value, count, column, weights + q * DECODE_KEYS, values + q * stride,
                 stride);
  }
}

INLINE void attend(const enum number number, const struct head *head, size_t queries, size_t first,
                   size_t last, const struct part *part, float *scratch)
{
  const size_t stride = decode_stride(head->size);
  float *query = scratch, *scores = scratch + queries * stride;
  scale_queries(head, queries, query);
  for (size_t key = first; key < last; key += DECODE_KEYS) {
    const size_t count = last - key < DECODE_KEYS ? last - key : DECODE_KEYS;
    score_block(number, head, queries, key, count, query, scores);
    for (size_t q = 0; head->softcap > 0 && q < queries; q++)
      cap_block(head->softcap, count, scores + q * DECODE_KEYS);
    for (size_t q = 0; head->bias != NULL && q < queries; q++)
      bias_block(head->bias + q * head->bias_head + head->skipped + key, count, scores + q * DECODE_KEYS);
    for (size_t q = 0; q < queries; q++)
      soften(scores + q * DECODE_KEYS, count, stride, part->highest + q, part->sum + q,
             part->values + q * stride);
    if (number == NUMBER_I8)
      weigh_bytes(head, queries, key, count, scores);
    add_block(number, head, queries, key, count, scores, part->values);
  }
}

void decode_keys(const struct head *head, size_t queries, size_t first, size_t last, const struct part *part,
                 float *scratch)
{
  for (size_t q = 0; q < queries; q++) {
    part->highest[q] = -3e38f; /* finite: the difference of two infinities is none */
    part->sum[q] = 0;
  }
  memset(part->values, 0, queries * decode_stride(head->size) * sizeof(float));
  if (head->number == NUMBER_I8)
    attend(NUMBER_I8, head, queries, first, last, part, scratch);
  else if (head->number == NUMBER_BF16)
    attend(NUMBER_BF16, head, queries, first, last, part, scratch);
  else
    attend(NUMBER_F32, head, queries, first, last, part, scratch);
}

void decode_merge(const struct head *head, size_t queries, const struct part *parts, size_t count, void *out)
{
  const size_t stride = decode_stride(head->size);
  const int bf16 = head->kind == KIND_BF16;
  for (size_t q = 0; q < queries; q++) {
    const float sink = head->sinks == NULL ? 0 : head->sinks[q];
    float highest = head->sinks == NULL ? parts[0].highest[q] : sink;
    for (size_t p = 0; p < count; p++)
      highest = parts[p].highest[q] > highest ? parts[p].highest[q] : highest;
    float sum = head->sinks == NULL ? 0 : exponential(sink - highest);
    float *values = parts[0].values + q * stride;
    for (size_t p = 0; p < count; p++) {
      const float factor = exponential(parts[p].highest[q] - highest);
      const float *add = parts[p].values + q * stride;
      sum += parts[p].sum[q] * factor;
      for (size_t i = 0; i < stride; i += LANES) {
        const vec x = vec_mul(vec_load(add + i), vec_of(factor));
        vec_store(values + i, p == 0 ? x : vec_add(vec_load(values + i), x));
      }
    }
    const vec inverse = vec_of(sum == 0 ? 0 : 1.f / sum); /* a query that sees nothing */
    for (size_t i = 0; i < head->size; i += LANES)
      store_floats(out, q * head->size + i, lanes((long)(head->size - i)), bf16,
                   vec_mul(vec_load(values + i), inverse));
  }
}
