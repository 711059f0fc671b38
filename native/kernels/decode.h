/* Attention of one token over the keys before it: the vectors of a few heads times many rows of memory.
 *
 * Nothing is packed: each key and value is read once, for all queries that see it, and the softmax is
 * computed as keys come (Milakov and Gimelshein 2018). So a sequence may be divided among threads, each of
 * which takes some of the keys, and their parts be merged. */
#pragma once
#include "attention.h"

enum { DECODE_KEYS = 64 }; /* that are computed at once */

/* What some keys give: for each query the highest score, the sum of e^(score - highest), and the sum of the
 * values times that. */
struct part {
  float *highest, *sum; /* [queries] */
  float *values;        /* [queries][stride]; stride: head_size up to a whole number of vectors */
};

size_t decode_stride(size_t head_size);

/* Floats that decode_keys needs for this many queries. */
size_t decode_scratch(size_t queries, size_t head_size);

/* The part of keys [first, last) of those that a head sees. `head->query`: `queries` rows next to each other,
 * of heads that share keys and values; head->bias and
 * head->sinks: of the first of these. */
void decode_keys(const struct head *head, size_t queries, size_t first, size_t last, const struct part *part,
                 float *scratch);

/* The result of all keys from `count` parts, in the type of the head's queries: rows next to each other. */
void decode_merge(const struct head *head, size_t queries, const struct part *parts, size_t count, void *out);
