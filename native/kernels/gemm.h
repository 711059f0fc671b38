/* Matrix multiplication by a weight that was packed once, in float32, bfloat16 or int8.
 *
 * All three are one kernel over words of 32 bits: a word is one float, two bfloat16 or four int8 that lie
 * next to each other along the summed dimension, and one instruction multiplies a word of the activations by
 * 16 words of the weight and adds to 16 sums. A packed weight is [panel of 32 columns][word][column]: what
 * the kernel reads lies in the order in which it reads it.
 *
 * int8: activations are unsigned, x = scale q - shift with one scale and shift per row; weights are signed,
 * w = scale w_q with one scale per column. So sum(x w) = scale_row scale_column sum(q w_q) - shift sum(w).
 * Numbers of a row that are much larger than the others would leave these few of the 256 steps: each is first
 * multiplied with a factor, by which the weights were divided (SmoothQuant, Xiao et al. 2022). Where a few
 * inputs have weights much larger than all others, which would leave the others few steps, these inputs are
 * not rounded at all: their factor is 0, and what they add is computed apart, in float32. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "amx.h"
#include "vector.h"

enum { PANEL = 32, VECTOR_ROWS = 14 }; /* 28 of 32 registers hold sums */
enum { MOST_TILE_ROWS = AMX_ROWS };
enum { EXACT = 4 }; /* inputs that are not rounded, where there are such */

enum kind { KIND_F32, KIND_BF16, KIND_I8, KINDS };

/* Numbers in a word of 32 bits. */
static inline size_t kind_numbers(enum kind kind)
{
  return (size_t)1 << kind;
}

static inline size_t kind_words(enum kind kind, size_t numbers)
{
  return (numbers + kind_numbers(kind) - 1) >> kind;
}

/* Words from row to row of an operand: an odd number of cache lines, so that the rows of a tile lie in
 * different sets of the cache. (3072 floats are three pages: all rows would share one set of eight lines.) */
static inline size_t operand_stride(size_t words)
{
  return ((words + 15) / 16 | 1) * 16;
}

/* A packed weight, (columns x words). The memory is the caller's. */
struct matrix {
  enum kind kind;
  size_t columns;         /* out_features */
  size_t words;           /* in_features, in words */
  const uint32_t *panels; /* [ceil(columns / PANEL)][words][PANEL] */
  const float *scales;    /* of columns; int8 only */
  const float *sums;      /* of the weights of each column; int8 only */
  const float *factors;   /* of in_features: what activations are multiplied with; int8 only */
  const float *bias;      /* of columns, or NULL */
  const float
      *exact; /* [EXACT][panels * PANEL]: weights of inputs that are not rounded, or NULL; int8 only */
  const int32_t *exact_inputs; /* which inputs these are */
};

/* Words of a row of its operand: behind the numbers lie, as floats, those that are not rounded. */
static inline size_t operand_words(const struct matrix *matrix)
{
  return matrix->words + (matrix->exact == NULL ? 0 : EXACT);
}

/* Rows of activations in a matrix' kind. */
struct operand {
  const uint32_t *words;
  size_t stride;       /* words from row to row */
  const float *scales; /* of rows; int8 only */
  const float *shifts; /* of rows; int8 only */
};

/* What becomes of the sums: activation(sum + bias) * factor + addend, stored as float32 or bfloat16. Strides
 * are in numbers. */
struct result {
  void *rows;
  size_t stride;
  int bf16;
  enum activation activation;
  const float *factor; /* rows of factor_stride, or NULL: the other half of a gated layer */
  size_t factor_stride;
  const float *addend; /* rows of addend_stride, or NULL */
  size_t addend_stride;
  const int32_t *addend_index; /* which row of `addend` belongs to each row; NULL: the same */
};

static inline size_t matrix_panels(const struct matrix *matrix)
{
  return (matrix->columns + PANEL - 1) / PANEL;
}

/* Panels [first, last) of result = operand * matrix, for `rows` rows. */
void gemm(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first, size_t last,
          const struct result *result);

/* The most rows whose sums the registers hold. */
static inline size_t tile_rows(enum kind kind)
{
  return amx_kinds() >> kind & 1 ? AMX_ROWS : VECTOR_ROWS;
}

/* Rows in tiles of nearly equal height: 16 rows are 8 and 8, not 14 and 2. AMX' registers are set up for one
 * height: there the last tile begins early, and its first rows are computed twice. */
struct tiles {
  enum kind kind;
  size_t rows, count, height; /* the height of the highest */
};

struct tile {
  size_t begin, end;
  size_t first; /* begin, or the first row that the tile before this one has not */
};

/* For one thread, which calls tiles_end before it begins others. */
struct tiles tiles_begin(enum kind kind, size_t rows);
struct tile tile_at(const struct tiles *tiles, size_t number);
void tiles_end(const struct tiles *tiles);

/* sums[rows][PANEL] (float32; int32 for int8) = rows x words of `a` times one panel, for a tile's rows. */
void gemm_tile(const struct tiles *tiles, const struct tile *tile, const uint32_t *a, size_t stride,
               const uint32_t *panel, size_t words, float *sums, size_t sums_stride);
