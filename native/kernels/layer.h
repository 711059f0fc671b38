/* Transformer layers over a batch of sequences of different lengths, as one function: an encoder's, or with a
 * cache of keys and values a decoder's.
 *
 * Padding is not computed: the rows of all sequences are taken together. Rows go through everything but
 * attention in blocks that stay in a core's cache. Threads take blocks; where there are few rows several
 * threads work on one block together, each on some of the columns, so that each weight is read by one core
 * only. */
#pragma once
#include "gemm.h"
#include "mixture.h"
#include "relative.h"
#include "rows.h"

/* Matrices that multiply the same rows have the same kind and factors, and round all inputs: query, key and
 * value; gate and up. */
struct layer {
  size_t hidden, heads, head_size; /* numbers of a row, of a head */
  size_t key_heads;                /* of keys and values, each of which serves as many of the heads */
  struct matrix query, key, value, output, gate, up, down; /* gate.columns is 0 where there is none */
  struct mixture mixture; /* in the place of gate, up and down, or beside these: an expert of all tokens */
  struct norm attention_norm, output_norm;
  struct norm query_norm, key_norm;      /* over each head, before rotary positions; NORM_NONE: none */
  int wide_norms;                        /* these two are over all heads of a row at once (OLMo 2) */
  struct norm attention_end, output_end; /* of what is added to the residual stream; NORM_NONE: none */
  int norm_first; /* before attention and feed-forward (ViT), not after the residual additions (BERT) */
  int parallel;   /* the feed-forward takes what attention takes, the layer's input (GPT-NeoX) */
  enum activation activation; /* of gate where there is one, otherwise of up */
  enum kind attention;        /* KIND_F32 or KIND_BF16 */
  float scale;                /* of the scores before softmax */
  float softcap;              /* above 0: scaled scores become softcap tanh(score / softcap) (Gemma 2) */
  const float *sinks;         /* [heads]: a score of no key in each softmax, or NULL (GPT-OSS) */
  float added;                /* the factor of what is added to the residual stream: 1, except in Granite */
  int joint;                  /* query multiplies for all three; key and value have no columns (GPT-NeoX) */
  size_t groups;    /* of a joint row: [group][its queries, its keys, its values]; 1 where not joint */
  int values_first; /* a group's values come before its keys (CodeGen) */
  size_t copies;    /* how often each head of keys and values is in the cache (Falcon: once for each query) */
  int pairs;        /* rotary positions turn neighbours, not numbers half of `size` apart (Cohere) */
  int unrotated;    /* rotary positions of a call are not for this layer (SmolLM3) */
  int norms_rotated; /* the norms of queries and keys come after rotary positions (HunYuan) */
  struct matrix cross_query,
      cross_output; /* of the attention over an encoder's keys and values, between
                     * self-attention and feed-forward; columns is 0 where there is none */
  struct norm cross_norm;
};

/* Whether the layer attends to an encoder's keys and values. */
static inline int layer_crosses(const struct layer *layer)
{
  return layer->cross_query.columns > 0;
}

/* Rows that belong together, numbered as in the padded (batch x length) input. */
struct sequences {
  size_t rows; /* of the padded input */
  size_t count;
  const int32_t *first, *length; /* of each sequence: its first row, and how many follow one another */
  const int32_t *skipped, *seen; /* of each: rows before the first that attention sees, and how many it sees;
                                  * NULL: it sees all */
  size_t window;                 /* a token sees others at most this far away; SIZE_MAX: all */
  int padding_sees_all;          /* evenly: rows that attention does not see (DeBERTa's stay in the batch);
                                  * 2: those up to itself in its window (GPT-Neo) */
};

/* What is added to the scores. */
struct bias {
  const float *numbers; /* [batch][head][query][key], or NULL */
  size_t batch, head,
      query; /* numbers from one to the next; 0: all have the same. Without a past, batch: 0 */
};

/* Rotary positions. */
struct rotary {
  const float *cosines, *sines; /* [row % angles][size], or NULL */
  size_t angles, size;          /* size: numbers of a head that are rotated, its first */
};

/* A layer's keys and values of the tokens before those of a call, with room for these. */
struct cache {
  void *keys, *values; /* [batch][key head][copy][token][head_size, and of bytes their factor] */
};

/* The tokens of a call follow others, and see none after their own. */
struct past {
  const struct cache *caches; /* of each layer, or NULL: there is no past, and tokens see those after them */
  size_t batch, head, token;  /* numbers from one to the next in a cache */
  enum number number;         /* what these are */
  size_t columns;             /* rows of a sequence in the padded input */
  size_t length;              /* tokens before those of the call, in all sequences */
  const int32_t (*seen)[2];   /* of each sequence: the first token that is seen, and the first behind those;
                               * NULL: all are */
  const int32_t (*places)[2]; /* of each row of the input: its sequence in the cache, and its place among
                               * the tokens of that. NULL: as the rows lie. Otherwise sequences may be of
                               * different lengths; `length` and `columns` are the largest */
};

/* What follows the last layer: a norm and a linear layer, as before the logits of a language model. */
struct tail {
  struct norm norm;
  struct matrix head;
  void *output; /* [rows][head.columns]; NULL: nothing follows */
  int bf16;     /* of the output */
};

/* The arguments of one call. */
struct call {
  const float *input; /* rows of layer->hidden */
  float *output;      /* the same; rows of no sequence become zero. Where something follows: their norm */
  struct sequences sequences;
  struct bias bias;
  struct rotary rotary;
  const struct rotary *rotaries; /* of each layer, in the place of `rotary`; NULL: all have that */
  struct relative relative;      /* scores of distances, of all heads; reach: at least every length */
  struct past past;
  struct past encoded; /* an encoder's keys and values, where layers attend to those: `length` tokens of each
                        * text, of which `seen` are seen by all tokens */
  struct tail tail;
};

/* `count` layers of one hidden size, at least one, each of which takes what the one before it gives.
 * ENOMEM where there is no memory for the intermediate results; 0 otherwise. */
int layers_run(const struct layer *const *layers, size_t count, const struct call *call, unsigned threads);
