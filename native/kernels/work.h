/* One layer's turn on some sequences: what layers.c divides and layer.c computes. */
#pragma once
#include <stdatomic.h>

#include "layer.h"
#include "team.h"

/* Some queries of one sequence, or of a piece of one. Rows are numbered without padding, from 0 in each
 * chunk.
 */
struct unit {
  size_t start, rows; /* the piece's first row, and how many it has */
  size_t before;      /* rows of the sequence before the piece, those of padding too where there is a past */
  size_t skipped, seen; /* rows before the first key; keys */
  size_t first, last;   /* queries */
  size_t batch, place;  /* with a past: of the sequence; of its first row among all tokens */
};

/* Sequences, or a piece of one, that go through all layers together, so that what one layer gives is in the
 * cache for the next.
 */
struct chunk {
  const int32_t *index; /* of each row: its row in the padded input */
  size_t rows;
  const struct unit *units;
  size_t unit_count;
};

/* What threads have taken of one layer's work on one chunk. */
struct taken {
  atomic_size_t projections, heads, merges, blocks;
  atomic_size_t crossings, cross_heads, cross_merges; /* of the attention over an encoder */
};

/* Rows of layer->hidden floats. */
struct rows {
  float *first;
  const int32_t *index; /* of each row of the chunk: which of these it is; NULL: the same */
};

/* A group's memory, used again for each layer of each chunk. */
struct memory {
  char *qkv;         /* [rows][query, key, value] in the type of attention */
  uint32_t *context; /* [rows][context_stride]: what attention gives */
  float *between;    /* [rows][hidden]: what a layer gives to the next, which writes it over, if only with
                      * what self-attention adds */
  float *normed;     /* [rows][hidden]: what a mixture is given, and then gives; and its memory */
  char *mixture;
  float *parts;      /* of attention, where threads share the keys of a head (attend.c) */
  uint32_t *scratch; /* of each thread of the group, thread_words each: its block, or its head */
  size_t thread_words;
  struct barrier *barriers; /* of each crew */
};

/* One layer's turn on one chunk. */
struct work {
  const struct layer *layer;
  const struct call *call;
  const struct cache *cache;   /* the layer's, or NULL */
  const struct cache *encoded; /* its keys and values of an encoder, or NULL */
  int crosses;                 /* whether attention is over these */
  const struct rotary *rotary;
  const struct chunk *chunk;
  struct taken *taken;
  struct rows input, output;
  const struct memory *memory;
};

/* Numbers of a row of memory.qkv, and its bytes; words of a row of memory.context. */
size_t layer_qkv_numbers(const struct layer *layer);
size_t layer_qkv_bytes(const struct layer *layer);
size_t layer_context_words(const struct layer *layer);

/* The first number of a head in a row of queries, keys and values. */
size_t layer_query_at(const struct layer *layer, size_t head);
size_t layer_key_at(const struct layer *layer, size_t head);
size_t layer_value_at(const struct layer *layer, size_t head);

/* What is done to queries, keys and values of one row before attention: norms, rotary positions, and they are
 * put into the cache. `buffer`: of all heads that have a norm together, or of one. */
void heads_finish(const struct work *work, size_t row, float *buffer);

/* Words of scratch that a thread needs, for sequences of at most `longest` rows. */
size_t layer_scratch(const struct layer *layer, size_t longest, const struct call *call);

/* Attention (attend.c): each thread's share, words of scratch, and floats of memory.parts. */
void attend(const struct work *work, const struct member *member);
size_t attend_scratch(const struct layer *layer, size_t longest, const struct call *call);
size_t attend_parts(const struct layer *layer, const struct call *call, unsigned threads);

/* The share of one thread of the group. Each thread waits for the others of its group within, not at the end.
 */
void layer_turn(const struct work *work, const struct member *member);
