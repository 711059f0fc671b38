#include "kernel_reference.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST = 4096 };

static struct {
  void *address;
  size_t size;
} mapped[MOST];
static size_t mapped_count;

void *guarded(size_t count, size_t size)
{
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = count * size;
  const size_t room = (bytes + page - 1) / page * page;
  char *start = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(start != MAP_FAILED && mapped_count < MOST);
  CHECK(mprotect(start + room, page, PROT_NONE) == 0);
  mapped[mapped_count].address = start;
  mapped[mapped_count++].size = room + page;
  memset(start, 0xff, room); /* NaN in every type: what was not written must not be used */
  return start + room - bytes;
}

void guarded_release(void)
{
  while (mapped_count > 0) {
    mapped_count--;
    CHECK(munmap(mapped[mapped_count].address, mapped[mapped_count].size) == 0);
  }
}

static uint64_t random_state = 1;

double uniform(double low, double high)
{
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return low + (high - low) * (double)(random_state >> 11) / 9007199254740992.0;
}

size_t below(size_t limit)
{
  return (size_t)uniform(0, (double)limit);
}

float *uniform_floats(size_t count, double low, double high)
{
  float *numbers = guarded(count, sizeof *numbers);
  for (size_t i = 0; i < count; i++)
    numbers[i] = (float)uniform(low, high);
  return numbers;
}

uint16_t bf16_of(float x)
{
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bf16_to(uint16_t x)
{
  const uint32_t bits = (uint32_t)x << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

/* Weights */

static double quantize_column(struct weight *weight, size_t column, float *scales, float *sums, int8_t *out)
{
  double *numbers = weight->numbers + column * weight->in_features, highest = 1e-30;
  for (size_t k = 0; k < weight->in_features; k++)
    highest = fmax(highest, fabs(numbers[k]));
  scales[column] = (float)(highest / 127);
  sums[column] = 0;
  for (size_t k = 0; k < weight->in_features; k++) {
    out[k] = (int8_t)lrint(numbers[k] / scales[column]);
    sums[column] += scales[column] * (float)out[k];
    numbers[k] = (double)scales[column] * out[k];
  }
  return scales[column];
}

uint32_t number_held(enum kind kind, uint32_t held)
{
  return kind == KIND_E2M1 ? of_e2m1[held] : held;
}

/* The place of the nearest number that is not larger. */
static uint32_t place_of(uint32_t number)
{
  uint32_t place = 14;
  while (of_e2m1[place] > number)
    place--;
  return place;
}

/* A group of a column, rounded: its words, and behind them its scale and minimum. */
static void quantize_numbers(enum kind kind, double *numbers, size_t count, uint32_t *words)
{
  const size_t per_word = kind_numbers(kind), order[] = {0, 2, 4, 6, 1, 3, 5, 7}; /* of nibbles in a word */
  const double most = kind == KIND_E2M1 ? 24 : is_halved(kind) ? 15 : 255;
  double lowest = numbers[0], highest = numbers[0];
  for (size_t k = 0; k < count; k++) {
    lowest = fmin(lowest, numbers[k]);
    highest = fmax(highest, numbers[k]);
  }
  const uint16_t scale = bf16_of((float)((highest - lowest) / most + 1e-9)), least = bf16_of((float)lowest);
  for (size_t k = 0; k < count; k++) {
    const double number = (numbers[k] - bf16_to(least)) / bf16_to(scale);
    const uint32_t q = (uint32_t)lrint(fmax(0, fmin(most, number)));
    const uint32_t held = kind == KIND_E2M1 ? place_of(q) : q;
    const size_t place = is_halved(kind) ? order[k % 8] * 4 : k % 4 * 8;
    words[k / per_word] |= held << place;
    numbers[k] = (double)bf16_to(scale) * number_held(kind, held) + bf16_to(least);
  }
  words[group_size(kind) / per_word] = (uint32_t)least << 16 | scale;
}

struct weight make_weight(enum kind kind, size_t columns, size_t in_features, int with_bias)
{
  struct weight weight = {.matrix = {.kind = kind,
                                     .columns = columns,
                                     .inputs = in_features,
                                     .words = kind_words(kind, in_features)},
                          .numbers = guarded(columns * in_features, sizeof(double)),
                          .in_features = in_features};
  const size_t words = weight.matrix.words, panels = matrix_panels(&weight.matrix);
  uint32_t *packed = guarded(panels * words * PANEL, sizeof *packed), *row = guarded(words, sizeof *row);
  float *scales = guarded(columns, sizeof *scales), *sums = guarded(columns, sizeof *sums);
  const double spread = 1 / sqrt((double)in_features);
  memset(packed, 0, panels * words * PANEL * sizeof *packed);
  for (size_t column = 0; column < columns; column++) {
    double *numbers = weight.numbers + column * in_features;
    memset(row, 0, words * sizeof *row);
    for (size_t k = 0; k < in_features; k++) {
      const float x = (float)uniform(-spread, spread);
      numbers[k] = kind == KIND_BF16 ? bf16_to(bf16_of(x)) : x;
      if (kind == KIND_F32)
        memcpy(row + k, &x, sizeof x);
      else if (kind == KIND_BF16)
        ((uint16_t *)row)[k] = bf16_of(x);
    }
    if (kind == KIND_I8)
      quantize_column(&weight, column, scales, sums, (int8_t *)row);
    const size_t size = group_size(kind);
    for (size_t k = 0; is_grouped(kind) && k < in_features; k += size)
      quantize_numbers(kind, numbers + k, in_features - k < size ? in_features - k : size,
                       row + k / size * (size / kind_numbers(kind) + 1));
    for (size_t word = 0; word < words; word++)
      packed[(column / PANEL * words + word) * PANEL + column % PANEL] = row[word];
  }
  weight.matrix.panels = packed;
  weight.matrix.scales = scales;
  weight.matrix.sums = sums;
  weight.matrix.factors = uniform_floats(in_features, 1, 1);
  weight.matrix.bias = with_bias ? uniform_floats(columns, -1, 1) : NULL;
  return weight;
}

/* Activations */

double operand_number(enum kind kind, const uint32_t *words, size_t k)
{
  static const size_t order[] = {0, 2, 1, 3}; /* in words that are widened: its own inverse */
  float x;
  if (is_grouped(kind) || (kind == KIND_I8 && BYTE_SHIFT))
    return ((const int8_t *)words)[k];
  if (kind == KIND_I8)
    return DOT_I8 ? ((const uint8_t *)words)[k] : ((const uint16_t *)words)[k / 4 * 4 + order[k % 4]];
  if (operand_is_bf16(kind))
    return bf16_to(((const uint16_t *)words)[k]);
  memcpy(&x, words + k, sizeof x);
  return x;
}

struct rows make_rows(enum kind kind, size_t rows, size_t in_features, size_t stride)
{
  const struct matrix matrix = {.kind = kind,
                                .inputs = in_features,
                                .words = kind_words(kind, in_features),
                                .factors = uniform_floats(in_features, 1, 1)};
  const size_t words = operand_words(&matrix);
  uint32_t *converted = guarded((rows - 1) * stride + words, sizeof *converted);
  float *scales = guarded(rows, sizeof *scales), *shifts = guarded(rows, sizeof *shifts);
  struct rows result = {{converted, stride, scales, shifts, 0, 0},
                        guarded(rows * in_features, sizeof(double))};
  for (size_t row = 0; row < rows; row++) {
    const float *x = uniform_floats(in_features, -1.5, 2);
    convert_row(&matrix, x, 0, in_features, converted + row * stride, scales + row, shifts + row);
    const float *of_groups =
        (const float *)(converted + row * stride) + group_count(kind, in_features) * group_words(kind);
    for (size_t k = 0; k < in_features; k++) {
      const double x = operand_number(kind, converted + row * stride, k);
      result.numbers[row * in_features + k] = kind == KIND_I8    ? scales[row] * x - shifts[row]
                                              : is_grouped(kind) ? of_groups[k / group_size(kind)] * x
                                                                 : x;
    }
  }
  return result;
}

/* Functions */

double reference_activation(enum activation activation, double x)
{
  switch (activation) {
  case ACT_GELU:
  case ACT_GELU_ROUGH:
    return x * .5 * (1 + erf(x * 0.70710678118654752));
  case ACT_GELU_TANH:
    return x * .5 * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
  case ACT_QUICK_GELU:
    return x / (1 + exp(-1.702 * x));
  case ACT_RELU:
    return x < 0 ? 0 : x;
  case ACT_SILU:
    return x / (1 + exp(-x));
  case ACT_TANH:
    return tanh(x);
  case ACT_RELU_SQUARED:
    return x < 0 ? 0 : x * x;
  default:
    return x;
  }
}

void reference_norm(const struct norm *norm, const double *x, size_t columns, double *out)
{
  double mean = 0, variance = 0;
  for (size_t i = 0; i < columns && norm->kind == NORM_LAYER; i++)
    mean += x[i] / (double)columns;
  for (size_t i = 0; i < columns; i++)
    variance += (x[i] - mean) * (x[i] - mean) / (double)columns;
  for (size_t i = 0; i < columns; i++) {
    out[i] = x[i];
    if (norm->kind == NORM_NONE)
      continue;
    out[i] = (x[i] - mean) / sqrt(variance + norm->epsilon);
    out[i] = out[i] * (norm->weight ? norm->weight[i] : 1) + (norm->bias ? norm->bias[i] : 0);
  }
}

void reference_linear(const struct weight *weight, const double *x, double *out)
{
  for (size_t column = 0; column < weight->matrix.columns; column++) {
    out[column] = weight->matrix.bias ? weight->matrix.bias[column] : 0;
    for (size_t k = 0; k < weight->in_features; k++)
      out[column] += x[k] * weight->numbers[column * weight->in_features + k];
  }
}

void reference_attention(const double *q, const double *keys, const double *values, size_t stride,
                         size_t length, size_t size, double scale, double softcap, const char *visible,
                         const double *bias, const float *sink, double *out)
{
  double sum = 0, highest = sink ? *sink : -INFINITY, *scores = malloc((length + 1) * sizeof *scores);
  CHECK(scores != NULL);
  memset(out, 0, size * sizeof *out);
  for (size_t k = 0; k < length; k++) {
    scores[k] = 0;
    for (size_t i = 0; i < size; i++)
      scores[k] += scale * q[i] * keys[k * stride + i];
    if (softcap > 0)
      scores[k] = softcap * tanh(scores[k] / softcap);
    scores[k] += bias ? bias[k] : 0;
    if (visible[k])
      highest = fmax(highest, scores[k]);
  }
  for (size_t k = 0; k < length; k++)
    sum += scores[k] = visible[k] ? exp(scores[k] - highest) : 0;
  sum += sink ? exp(*sink - highest) : 0;
  for (size_t k = 0; sum > 0 && k < length; k++)
    for (size_t i = 0; i < size; i++)
      out[i] += scores[k] / sum * values[k * stride + i];
  free(scores);
}

void *numbers_of(enum kind kind, size_t count, double *values)
{
  char *out = guarded(count, sizeof(uint32_t) >> kind);
  for (size_t i = 0; i < count; i++) {
    const float x = (float)values[i];
    if (kind == KIND_F32)
      ((float *)out)[i] = x, values[i] = x;
    else
      ((uint16_t *)out)[i] = bf16_of(x), values[i] = bf16_to(bf16_of(x));
  }
  return out;
}
