/* Scaled dot-product attention of one head over one sequence, without padding. */
#pragma once
#include "gemm.h"
#include "relative.h"
#include "vector.h"

/* softcap tanh(score / softcap) */
INLINE vec capped(float softcap, vec score)
{
  return vec_mul(vector_tanh(vec_mul(score, vec_of(1.f / softcap))), vec_of(softcap));
}

/* Queries, keys and values of one head: rows of `head_size` numbers, float32 or bfloat16. */
struct head {
  enum kind kind;     /* KIND_F32 or KIND_BF16: the type of the queries, and of the multiplications */
  enum number number; /* what keys and values are; with KIND_BF16 they are not float32 */
  const void *query, *key, *value;
  size_t stride, key_stride; /* numbers from row to row: of queries; of keys and values */
  size_t length, size;       /* keys and values; numbers of a row: even for bfloat16 */
  size_t skipped;            /* tokens before the first key, which no query sees: padding on the left */
  float scale;
  float softcap;            /* above 0: scaled scores become softcap tanh(score / softcap) before the bias */
  const float *bias;        /* added to the scaled scores, [query][token], or NULL */
  size_t bias_stride;       /* numbers from query to query */
  size_t bias_head;         /* and to the next head */
  const float *sinks;       /* of this head and those behind it: a score of no key, or NULL */
  size_t window;            /* a query sees tokens at most this far away; SIZE_MAX: all */
  int causal;               /* a query sees no token after its own */
  size_t past;              /* tokens before the first query */
  struct relative relative; /* added to the scores before they are scaled */
};

/* Words of scratch that a head of this kind needs; behind them, what relative_scratch says, or where keys and
 * values are bytes, widened_scratch. */
size_t attention_scratch(enum kind kind, size_t length, size_t size);
size_t widened_scratch(enum kind kind, size_t length, size_t size);

/* Rows [first, last) of softmax(capped((query key^T + relative) scale) + bias) value, in the type of the
 * inputs; a sink is one more score of the softmax, whose share is lost. `out` is where row `first` goes;
 * out_stride in numbers. */
void attention_head(const struct head *head, size_t first, size_t last, void *out, size_t out_stride,
                    uint32_t *scratch);

/* The same for queries that no query sees: the mean of all `rows` values of the sequence; with 0, of those up
 * to the query's own that are in its window. */
void attention_mean(const struct head *head, size_t rows, size_t first, size_t last, void *out,
                    size_t out_stride);
