#include "rows.h"

#include <float.h>
#include <string.h>

void copy_numbers(const void *from, int from_bf16, void *to, int to_bf16, size_t count)
{
  for (size_t i = 0; i < count; i += LANES) {
    const vec_mask some = lanes((long)(count - i));
    store_floats(to, i, some, to_bf16, load_floats(from, i, some, from_bf16));
  }
}

void copy_as_bytes(const float *from, void *to, size_t count)
{
  vec most = vec_zero();
  for (size_t i = 0; i < count; i += LANES) {
    const vec x = vec_load_some(from + i, lanes((long)(count - i)));
    most = vec_max(vec_max(x, vec_sub(vec_zero(), x)), most);
  }
  const float highest = vec_highest(most), factor = highest / 127;
  const vec inverse = vec_of(highest > 0 ? 127 / highest : 0);
  int8_t bytes[LANES];
  for (size_t i = 0; i < count; i += LANES) {
    signed_bytes_store(bytes, vec_round(vec_mul(vec_load_some(from + i, lanes((long)(count - i))), inverse)));
    memcpy((int8_t *)to + i, bytes, count - i < LANES ? count - i : LANES);
  }
  memcpy((int8_t *)to + count, &factor, sizeof factor);
}

float row_factor(const void *row, size_t count, enum number number)
{
  float factor = 1;
  if (number == NUMBER_I8)
    memcpy(&factor, (const int8_t *)row + count, sizeof factor);
  return factor;
}

void norm_row(const struct norm *norm, const float *x, size_t columns, float *out)
{
  vec sum = vec_zero(), squares = vec_zero();
  float mean = 0;
  if (norm->kind == NORM_NONE) {
    memmove(out, x, columns * sizeof *x);
    return;
  }
  if (norm->kind == NORM_LAYER) {
    for (size_t i = 0; i < columns; i += LANES)
      sum = vec_add(sum, vec_load_some(x + i, lanes((long)(columns - i))));
    mean = vec_sum(sum) / (float)columns;
  }
  /* a second pass: mean(x^2) - mean(x)^2 would cancel the variance */
  const vec means = vec_of(mean);
  for (size_t i = 0; i < columns; i += LANES) {
    const vec_mask some = lanes((long)(columns - i));
    const vec centred = vec_select(some, vec_sub(vec_load_some(x + i, some), means), vec_zero());
    squares = vec_fma(centred, centred, squares);
  }
  const float variance = vec_sum(squares) / (float)columns;
  const vec factor = vec_of(1.f / __builtin_sqrtf(variance + norm->epsilon));
  for (size_t i = 0; i < columns; i += LANES) {
    const vec_mask some = lanes((long)(columns - i));
    vec y = vec_mul(vec_sub(vec_load_some(x + i, some), means), factor);
    if (norm->weight != NULL)
      y = vec_mul(y, vec_load_some(norm->weight + i, some));
    if (norm->bias != NULL)
      y = vec_add(y, vec_load_some(norm->bias + i, some));
    vec_store_some(out + i, some, y);
  }
}

/* A vec of numbers before rounding: about 0 to 255. */
INLINE vec quantized(const float *factors, const void *x, int bf16, size_t i, vec_mask some, vec factor,
                     vec zeros)
{
  const vec smooth = vec_mul(vec_load_some(factors + i, some), factor);
  return vec_fma(load_floats(x, i, some, bf16), smooth, zeros);
}

static void quantize_row(const float *factors, const void *x, int bf16, size_t columns, uint32_t *out,
                         float *scale, float *shift)
{
  vec lowest = vec_zero(), highest = vec_zero(); /* the range includes 0, because padding is 0 */
  vec nan = vec_zero();                          /* min and max can lose NaN again */
  for (size_t i = 0; i < columns; i += LANES) {
    const vec_mask some = lanes((long)(columns - i));
    const vec v = vec_mul(load_floats(x, i, some, bf16), vec_load_some(factors + i, some));
    lowest = vec_min(lowest, v);
    highest = vec_max(highest, v);
    nan = vec_fma(v, vec_zero(), nan);
  }
  const float low = vec_lowest(lowest), high = vec_highest(highest);
  const float range = (high - low) / 255.f,
              step = range >= FLT_MIN ? range : 1.f; /* 1 / step must be finite */
  *scale = vec_has_nan(nan) ? __builtin_nanf("") : step;
  const float zero = __builtin_rintf(-low / step); /* 0 becomes this: exactly a whole number */
  *shift = (zero - BYTE_SHIFT) * step;
  const vec factor = vec_of(1.f / step), zeros = vec_of(zero);
  size_t i = 0;
  for (; i + 4 * LANES <= columns; i += 4 * LANES) {
    vec q[4];
    for (size_t j = 0; j < 4; j++)
      q[j] = quantized(factors, x, bf16, i + LANES * j, lanes(LANES), factor, zeros);
    bytes_store(out, i, q);
  }
  for (; i < columns; i += LANES) {
    const size_t count = columns - i < LANES ? columns - i : LANES;
    const vec q = quantized(factors, x, bf16, i, lanes((long)count), factor, zeros);
    bytes_store_some(out, i, count, q);
  }
}

/* `size` numbers as signed bytes, and their scale and its product with their sum. */
INLINE void quantize_group(const size_t size, const void *x, int bf16, size_t begin, size_t columns,
                           int8_t *out, float *scale, float *total)
{
  const size_t parts = size / LANES;
  vec numbers[GROUP / LANES], highest = vec_zero(), sum = vec_zero(), nan = vec_zero();
  for (size_t j = 0; j < parts; j++) {
    const size_t i = begin + j * LANES;
    numbers[j] = load_floats(x, i, lanes((long)columns - (long)i), bf16);
    highest = vec_max(highest, vec_max(numbers[j], vec_sub(vec_zero(), numbers[j])));
    nan = vec_fma(numbers[j], vec_zero(), nan);
  }
  const float range = vec_highest(highest) / 127.f, step = range >= FLT_MIN ? range : 1.f;
  const vec factor = vec_of(1.f / step);
  for (size_t j = 0; j < parts; j++) {
    const vec whole = vec_round(vec_mul(numbers[j], factor));
    sum = vec_add(sum, whole);
    signed_bytes_store(out + j * LANES, whole);
  }
  *scale = vec_has_nan(nan) ? __builtin_nanf("") : step;
  *total = *scale * vec_sum(sum);
}

static void quantize_groups(enum kind kind, const void *x, int bf16, size_t columns, uint32_t *words)
{
  const size_t groups = group_count(kind, columns), size = group_size(kind);
  int8_t *out = (int8_t *)words;
  float *scales = (float *)(out + groups * size), *totals = scales + groups;
  for (size_t g = 0; g < groups; g++)
    if (size == GROUP)
      quantize_group(GROUP, x, bf16, g * size, columns, out + g * size, scales + g, totals + g);
    else if (size == SMALL_GROUP)
      quantize_group(SMALL_GROUP, x, bf16, g * size, columns, out + g * size, scales + g, totals + g);
    else
      quantize_group(TINY_GROUP, x, bf16, g * size, columns, out + g * size, scales + g, totals + g);
}

void convert_row(const struct matrix *matrix, const void *x, int bf16, size_t columns, uint32_t *words,
                 float *scale, float *shift)
{
  const enum kind kind = matrix->kind;
  if (is_grouped(kind)) {
    quantize_groups(kind, x, bf16, columns, words);
    return;
  }
  if (kind == KIND_I8) {
    quantize_row(matrix->factors, x, bf16, columns, words, scale, shift);
    for (size_t e = 0; matrix->exact != NULL && e < EXACT; e++) {
      const float input = vec_sum(load_floats(x, (size_t)matrix->exact_inputs[e], lanes(1), bf16));
      memcpy(words + matrix->words * words_per_word(kind) + e, &input, sizeof input);
    }
    return;
  }
  copy_numbers(x, bf16, words, operand_is_bf16(kind), columns);
  if (kind == KIND_BF16 && columns % 2 == 1) /* the other half of the last word */
    memset((char *)words + columns * operand_bytes(kind), 0, operand_bytes(kind));
}

/* Three parts of a row, padded with zeros up to whole steps of AMX. */
static void split_row(const void *x, int bf16, size_t columns, uint32_t *words, size_t part)
{
  enum { STEP = 2 * AMX_WORDS };
  const size_t end = (columns + STEP - 1) / STEP * STEP;
  for (size_t i = 0; i < end; i += LANES) {
    const vec numbers = load_floats(x, i, lanes((long)(columns - i)), bf16);
    store_parts((uint16_t *)words + i, 2 * part, lanes(LANES), numbers);
  }
}

/* A row of bfloat16, padded with zeros up to a whole group. */
static void round_row(enum kind kind, const void *x, int bf16, size_t columns, uint32_t *words)
{
  for (size_t i = 0; i < group_count(kind, columns) * group_size(kind); i += LANES)
    vec_store_bf16((uint16_t *)words + i, lanes(LANES),
                   load_floats(x, i, lanes((long)columns - (long)i), bf16));
}

void fill_row(const struct matrix *matrix, const struct operand *operand, size_t row, const void *x, int bf16,
              size_t columns)
{
  uint32_t *words = operand->words + row * operand->stride;
  if (operand->part)
    split_row(x, bf16, columns, words, operand->part);
  else if (operand->unpacked)
    round_row(matrix->kind, x, bf16, columns, words);
  else
    convert_row(matrix, x, bf16, columns, words, operand->scales + row, operand->shifts + row);
}
