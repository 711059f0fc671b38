/* Matrix multiplication by a weight that was packed once, in float32, bfloat16, int8 or in groups.
 *
 * The first three are one kernel over words of 32 bits: a word is one float, two bfloat16 or four int8 that
 * lie next to each other along the summed dimension, and one instruction multiplies a word of the activations
 * by LANES words of the weight and adds to as many sums. A packed weight is [panel of PANEL columns][word]
 * [column]: what the kernel reads lies in the order in which it reads it.
 *
 * Where the CPU has no such instruction for bfloat16 or int8 (set.h), a word of the weight is widened in
 * registers, once for all rows of a tile: into two floats, or into two pairs of 16-bit integers. The
 * activations are then wide in memory: floats, or 16-bit integers, two words for each word of the weight. No
 * sum can overflow, and those of int8 are the same in every set, to the bit.
 *
 * int8: activations are unsigned, x = scale q - shift with one scale and shift per row; weights are signed,
 * w = scale w_q with one scale per column. So sum(x w) = scale_row scale_column sum(q w_q) - shift sum(w).
 * Numbers of a row that are much larger than the others would leave these few of the 256 steps: each is first
 * multiplied with a factor, by which the weights were divided (SmoothQuant, Xiao et al. 2022). Where a few
 * inputs have weights much larger than all others, which would leave the others few steps, these inputs are
 * not rounded at all: their factor is 0, and what they add is computed apart, in float32.
 *
 * Groups (gemm_grouped.c): weights in 8 or 4 bits for work that is limited by the bytes of the weights. Each
 * column has a scale and a minimum for every GROUP, SMALL_GROUP or TINY_GROUP inputs, w = scale q + minimum,
 * both bfloat16, in one word behind the group's words. Activations are signed bytes with one scale for each
 * row and group, so that a large number costs its own group precision and no other. The sums of a group are
 * whole numbers below 2^24, the same in every set to the bit. KIND_E2M1 holds places in a table of 16 numbers
 * instead: floats of 4 bits (MXFP4), doubled and without sign (gemm_grouped.h). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "amx.h"
#include "vector.h"

enum { PANEL = VECTORS * LANES };
enum { MOST_TILE_ROWS = HAS_AMX ? AMX_ROWS : VECTOR_ROWS };
enum { EXACT = 4 };                  /* inputs that are not rounded, where there are such */
enum { SPLIT = 3, SPLIT_ROWS = 64 }; /* parts of a float32 in bfloat16; from how many rows on that pays */
enum { UNPACKED_ROWS = 32 };         /* from how many rows on a weight in groups is unpacked for AMX */

enum kind {
  KIND_F32,
  KIND_BF16,
  KIND_I8,
  KIND_G8,
  KIND_G4,
  KIND_G8_SMALL,
  KIND_G4_SMALL,
  KIND_E2M1,
  KIND_G8_TINY,
  KINDS
};

enum { GROUP = 64, SMALL_GROUP = 32, TINY_GROUP = 16 }; /* inputs */

static inline int is_grouped(enum kind kind)
{
  return kind >= KIND_G8;
}

/* Whether a byte of the weight holds two numbers. */
static inline int is_halved(enum kind kind)
{
  return kind == KIND_G4 || kind == KIND_G4_SMALL || kind == KIND_E2M1;
}

/* Inputs of a group. */
static inline size_t group_size(enum kind kind)
{
  return kind == KIND_G8_TINY ? TINY_GROUP : kind >= KIND_G8_SMALL ? SMALL_GROUP : GROUP;
}

/* Words of the activations of a group. */
static inline size_t group_words(enum kind kind)
{
  return group_size(kind) / 4;
}

/* Numbers in a word of 32 bits. */
static inline size_t kind_numbers(enum kind kind)
{
  return is_halved(kind) ? 8 : is_grouped(kind) ? 4 : (size_t)1 << kind;
}

static inline size_t group_count(enum kind kind, size_t inputs)
{
  return (inputs + group_size(kind) - 1) / group_size(kind);
}

/* Words of a column with so many numbers: those of groups and, behind each, its scale and minimum. */
static inline size_t kind_words(enum kind kind, size_t numbers)
{
  if (is_grouped(kind))
    return group_count(kind, numbers) * (group_size(kind) / kind_numbers(kind) + 1);
  return (numbers + kind_numbers(kind) - 1) / kind_numbers(kind);
}

/* Words of the activations that one word of the weight is multiplied by. */
static inline size_t words_per_word(enum kind kind)
{
  return (kind == KIND_BF16 && !DOT_BF16) || (kind == KIND_I8 && !DOT_I8) ? 2 : 1;
}

/* Whether activations are rounded to bfloat16, or stay float32; those for int8 are neither. */
static inline int operand_is_bf16(enum kind kind)
{
  return kind == KIND_BF16 && DOT_BF16;
}

static inline int operand_is_f32(enum kind kind)
{
  return kind == KIND_F32 || (kind == KIND_BF16 && !DOT_BF16);
}

/* Bytes of one number of the activations. */
static inline size_t operand_bytes(enum kind kind)
{
  return words_per_word(kind) * sizeof(uint32_t) >> kind;
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
  size_t inputs;          /* in_features */
  size_t words;           /* the same, in words */
  const uint32_t *panels; /* [ceil(columns / PANEL)][words][PANEL] */
  const float *scales;    /* of columns; int8 only */
  const float *sums;      /* of the weights of each column; int8 only */
  const float *factors;   /* of in_features: what activations are multiplied with; int8 only */
  const float *bias;      /* of columns, or NULL */
  const float
      *exact; /* [EXACT][panels * PANEL]: weights of inputs that are not rounded, or NULL; int8 only */
  const int32_t *exact_inputs; /* which inputs these are */
};

/* Words of a row of its operand: behind the numbers lie, as floats, those that are not rounded; of groups,
 * the scale of each and then the scale times the sum of the numbers of each. */
static inline size_t operand_words(const struct matrix *matrix)
{
  if (is_grouped(matrix->kind))
    return group_count(matrix->kind, matrix->inputs) * (group_words(matrix->kind) + 2);
  return matrix->words * words_per_word(matrix->kind) + (matrix->exact == NULL ? 0 : EXACT);
}

/* Rows of activations in a matrix' kind. */
struct operand {
  uint32_t *words;
  size_t stride; /* words from row to row */
  float *scales; /* of rows; int8 only */
  float *shifts; /* of rows; int8 only */
  size_t part;   /* words from part to part of a float32 row that is split (is_split), largest first; or 0 */
  int unpacked;  /* bfloat16, for a weight in groups that is unpacked (is_unpacked) */
};

/* What becomes of the sums: activation(sum + bias) * factor + addend, stored as float32, as bfloat16 or in
 * parts (struct operand). Strides are in numbers. */
struct result {
  void *rows;
  size_t stride;
  int bf16;
  size_t part; /* of bfloat16: numbers from part to part of a row that is split, or 0 */
  enum activation activation;
  const float *factor; /* rows of factor_stride, or NULL: the other half of a gated layer */
  size_t factor_stride;
  const float *addend; /* rows of addend_stride, or NULL */
  size_t addend_stride;
  const int32_t *addend_index; /* which row of `addend` belongs to each row; NULL: the same */
};

static inline int by_amx(enum kind kind)
{
  return HAS_AMX && (kind == KIND_BF16 || kind == KIND_I8);
}

/* The most rows whose sums the registers hold. */
static inline size_t tile_rows(enum kind kind)
{
  return by_amx(kind) ? AMX_ROWS : is_grouped(kind) ? GROUPED_ROWS : VECTOR_ROWS;
}

/* Whether this many rows of float32 are multiplied by AMX, which knows bfloat16: each number, of 24 bits, is
 * the sum of three of 8 bits. Six products of those are still faster than one in float32. */
static inline int is_split(const struct matrix *matrix, size_t rows)
{
  return matrix->kind == KIND_F32 && rows >= SPLIT_ROWS && by_amx(KIND_BF16);
}

/* Whether this many rows are multiplied by AMX with a weight in groups, which is unpacked to bfloat16. */
static inline int is_unpacked(const struct matrix *matrix, size_t rows)
{
  const size_t numbers = group_count(matrix->kind, matrix->inputs) * group_size(matrix->kind);
  return HAS_AMX && is_grouped(matrix->kind) && rows >= UNPACKED_ROWS && numbers % SMALL_GROUP == 0;
}

/* Words of a row of bfloat16 for that: SMALL_GROUP numbers are a step of AMX. */
static inline size_t unpacked_words(const struct matrix *matrix)
{
  return kind_words(KIND_BF16, group_count(matrix->kind, matrix->inputs) * group_size(matrix->kind));
}

/* The upper half of each number, and of what is left, and that: no bit is lost. */
INLINE void store_parts(uint16_t *place, size_t part, vec_mask some, vec x)
{
  for (size_t p = 0; p < SPLIT; p++, place += part) {
    vec_store_upper(place, some, x);
    x = vec_sub(x, vec_upper(x));
  }
}

/* With fewer rows for each thread, threads share them: each weight is then read, and split, by one only. AMX
 * is so fast that it waits for a weight which does not fit the second-level cache. */
static inline size_t crew_rows(const struct matrix *matrix)
{
  const size_t bytes = matrix->columns * matrix->words * sizeof(uint32_t);
  const int waits = by_amx(matrix->kind) && bytes > 2 << 20;
  return waits || is_split(matrix, SIZE_MAX) ? 4 * AMX_ROWS : 28;
}

static inline size_t split_part(const struct matrix *matrix)
{
  return operand_stride(kind_words(KIND_BF16, matrix->words));
}

/* The most words that a row of its operand takes. */
static inline size_t operand_room(const struct matrix *matrix)
{
  const size_t whole = operand_stride(operand_words(matrix));
  const size_t split = is_split(matrix, SIZE_MAX) ? SPLIT * split_part(matrix) : 0;
  const size_t unpacked = is_unpacked(matrix, SIZE_MAX) ? operand_stride(unpacked_words(matrix)) : split;
  return whole > unpacked ? whole : unpacked;
}

/* An operand of this many rows, in memory of that room. */
static inline struct operand operand_of(const struct matrix *matrix, size_t rows, uint32_t *words,
                                        float *scales, float *shifts)
{
  const size_t part = is_split(matrix, rows) ? split_part(matrix) : 0;
  const int unpacked = is_unpacked(matrix, rows);
  const size_t whole = operand_stride(unpacked ? unpacked_words(matrix) : operand_words(matrix));
  return (struct operand){words, part ? SPLIT * part : whole, scales, shifts, part, unpacked};
}

static inline size_t matrix_panels(const struct matrix *matrix)
{
  return (matrix->columns + PANEL - 1) / PANEL;
}

/* Panels [first, last) of result = operand * matrix, for `rows` rows. */
void gemm(const struct matrix *matrix, const struct operand *operand, size_t rows, size_t first, size_t last,
          const struct result *result);

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
