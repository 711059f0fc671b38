/* Rows of a chunk that a crew of threads takes through a layer together. */
#pragma once
#include "work.h"

/* A crew's memory for one block of rows. */
struct block {
  float *x;               /* [rows][hidden]: the residual stream */
  float *added;           /* [rows][hidden]: what is changed before it is added to x, where there is such */
  uint32_t *narrow;       /* [rows][room]: the operand of query, key and value, of output and of up in turn */
  uint32_t *wide;         /* [rows][operand_stride of intermediate]: float32 */
  uint32_t *down;         /* [rows][room]: the same as down's operand, where that is not float32 as it is */
  float *scales, *shifts; /* [rows]: int8 only */
  float *row;             /* [threads of the crew][hidden, or what has a norm of its own if that is larger] */
};

/* A thread's place in a chunk. */
struct place {
  struct crew crew;
  struct block block;
  float *row; /* of block.row: this thread's own */
};

/* Whether something is done to what is added to the residual stream. */
static inline int has_end(const struct layer *layer, const struct norm *norm)
{
  return norm->kind != NORM_NONE || layer->added != 1;
}

/* Its places in memory at `base`, or with base NULL only its size. */
struct block block_divide(const struct layer *layer, char *base, size_t *used);

struct place place_of(const struct work *work, const struct member *member);

/* The blocks that a thread's crew takes of a chunk. */
struct blocks blocks_of(const struct work *work, const struct place *place, atomic_size_t *next);
