/* Scores of distances, which disentangled attention adds (DeBERTa, He et al. 2021). The distance between a
 * query and a token falls into a bucket. The query is multiplied by the bucket's key, and the token's key by
 * the bucket's query. */
#pragma once
#include "gemm.h"

/* Of all heads of a layer, or of one (relative_of_head). */
struct relative {
  const uint32_t *keys;    /* [head][panel of 32 buckets][word][bucket] in the type of attention, or NULL */
  const uint32_t *queries; /* the same, or NULL */
  size_t buckets;
  const int32_t *index; /* [2 reach + 1]: the bucket of key - query, from -reach on */
  size_t reach;         /* the largest distance between two tokens of a sequence, or more */
};

static inline int is_relative(const struct relative *relative)
{
  return relative->keys != NULL || relative->queries != NULL;
}

struct relative relative_of_head(const struct relative *relative, size_t head, size_t words);

/* Words of scratch for a head with this many keys. */
size_t relative_scratch(const struct relative *relative, size_t length);

struct head;

/* Values that all queries in [first, last) of a head share. */
struct distances {
  size_t panel, panels; /* the first panel of buckets that is needed, and how many are */
  float *near;          /* [rows of a tile][panels * PANEL]: a tile of queries times the buckets' keys */
  float *far;           /* [keys][panels * PANEL]: keys times the buckets' queries */
};

struct distances relative_begin(const struct head *head, size_t first, size_t last, float *scratch);

/* Adds to the scores of a tile of queries, from query `first` on: rows of `width` unscaled numbers. */
void relative_add(const struct head *head, const struct distances *distances, const struct tiles *tiles,
                  const struct tile *tile, size_t first, float *scores, size_t width);
