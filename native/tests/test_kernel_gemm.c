/* rows.h, vector.h, gemm.h and linear.h. */
#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernel_reference.h"
#include "kernels/embed.h"
#include "kernels/linear.h"
#include "kernels/scratch.h"

/* Rows */

static void test_norm(enum norm_kind kind, size_t columns, int affine)
{
  const float *x = uniform_floats(columns, 90, 100); /* a mean that is large for the variance */
  const struct norm norm = {affine ? uniform_floats(columns, -2, 2) : NULL,
                            affine ? uniform_floats(columns, -2, 2) : NULL, 1e-5f, kind};
  float *out = guarded(columns, sizeof *out);
  double *wide = guarded(columns, sizeof *wide), *expected = guarded(columns, sizeof *expected);
  for (size_t i = 0; i < columns; i++)
    wide[i] = x[i];
  reference_norm(&norm, wide, columns, expected);
  norm_row(&norm, x, columns, out);
  for (size_t i = 0; i < columns; i++)
    CHECK(fabs(out[i] - expected[i]) <= 2e-5 * (1 + fabs(expected[i])));
  memcpy(out, x, columns * sizeof *out); /* in place */
  norm_row(&norm, out, columns, out);
  for (size_t i = 0; i < columns; i++)
    CHECK(fabs(out[i] - expected[i]) <= 2e-5 * (1 + fabs(expected[i])));
  guarded_release();
}

static void test_norm_of_nan_and_of_a_constant(void)
{
  const struct norm norm = {NULL, NULL, 1e-5f, NORM_LAYER};
  float *x = uniform_floats(35, 1, 1), *out = guarded(35, sizeof *out);
  norm_row(&norm, x, 35, out);
  for (size_t i = 0; i < 35; i++)
    CHECK(fabsf(out[i]) < 1e-3f);
  x[34] = NAN;
  norm_row(&norm, x, 35, out);
  for (size_t i = 0; i < 35; i++)
    CHECK(isnan(out[i]));
  guarded_release();
}

/* x in the kind, and whether what lies between its end and the end of the last word is zero. */
static void test_conversion(enum kind kind, int from_bf16, size_t columns)
{
  const float *x = uniform_floats(columns, -3, 5);
  uint16_t *half = guarded(columns, sizeof *half);
  const struct matrix matrix = {.kind = kind,
                                .inputs = columns,
                                .words = kind_words(kind, columns),
                                .factors = uniform_floats(columns, 1, 1)};
  uint32_t *out = guarded(operand_words(&matrix), sizeof *out);
  const float *of_groups = (const float *)(out + group_count(kind, columns) * group_words(kind));
  const size_t size = group_size(kind);
  float scale = 0, shift = 0;
  for (size_t i = 0; i < columns; i++)
    half[i] = bf16_of(x[i]);
  convert_row(&matrix, from_bf16 ? (const void *)half : x, from_bf16, columns, out, &scale, &shift);
  for (size_t i = 0; i < columns; i++) {
    const float wanted = from_bf16 ? bf16_to(half[i]) : x[i];
    const double got = operand_number(kind, out, i);
    if (operand_is_f32(kind))
      CHECK(memcmp(out + i, &wanted, sizeof wanted) == 0);
    else if (kind == KIND_BF16)
      CHECK(got == bf16_to(bf16_of(wanted)));
    else if (is_grouped(kind))
      CHECK(fabs(of_groups[i / size] * got - wanted) <= of_groups[i / size] * .5001);
    else /* half a step, and the rounding of the zero */
      CHECK(fabs(scale * got - shift - wanted) <= scale * 1.001);
  }
  const size_t whole = kind_words(kind, columns) * kind_numbers(kind);
  for (size_t i = columns; i < (is_grouped(kind) ? group_count(kind, columns) * size : whole); i++)
    CHECK(operand_number(kind, out, i) == (kind == KIND_I8 ? -BYTE_SHIFT : 0));
  for (size_t g = 0; is_grouped(kind) && g < group_count(kind, columns); g++) {
    double sum = 0;
    for (size_t i = 0; i < size; i++)
      sum += operand_number(kind, out, g * size + i);
    CHECK(of_groups[group_count(kind, columns) + g] == (float)(of_groups[g] * sum));
  }
  guarded_release();
}

/* A row of `columns` numbers that are all `value`, quantized; what the first then stands for. */
static double quantized(float value, size_t columns)
{
  float *x = uniform_floats(columns, value, value), scale, shift;
  const struct matrix matrix = {.kind = KIND_I8, .factors = uniform_floats(columns, 1, 1)};
  uint32_t *out = guarded(kind_words(KIND_I8, columns) * words_per_word(KIND_I8), sizeof *out);
  x[0] = value;
  convert_row(&matrix, x, 0, columns, out, &scale, &shift);
  CHECK(isnan(value) ||
        (shift >= -BYTE_SHIFT * scale && shift <= (255.01f - BYTE_SHIFT) * scale && scale > 0));
  const double result = scale * operand_number(KIND_I8, out, 0) - shift;
  guarded_release();
  return result;
}

static void test_quantization_of_special_rows(void)
{
  CHECK(quantized(0, 33) == 0);
  for (int sign = -1; sign <= 1; sign += 2) {
    CHECK(fabs(quantized((float)sign * 7.5f, 33) - sign * 7.5) < 1e-5);
    CHECK(fabs(quantized((float)sign * 1e-30f, 33)) <= 1.01e-30);
    CHECK(fabs(quantized((float)sign * 1e-40f, 33)) <
          1e-37); /* smaller than what has an inverse: 0 is near */
    CHECK(fabs(quantized((float)sign * 1e37f, 33)) > 9e36);
  }
  CHECK(isnan(quantized(NAN, 1)));
  CHECK(isnan(quantized(NAN, 70))); /* wherever in the row, it must not become an ordinary number */
  const struct matrix matrix = {.kind = KIND_I8, .factors = uniform_floats(70, 1, 1)};
  float *x = uniform_floats(70, -1, 1), scale, shift;
  uint32_t *out = guarded(kind_words(KIND_I8, 70) * words_per_word(KIND_I8), sizeof *out);
  x[3] = NAN;
  convert_row(&matrix, x, 0, 70, out, &scale, &shift);
  CHECK(isnan(scale * operand_number(KIND_I8, out, 0) - shift));
  x[3] = INFINITY;
  convert_row(&matrix, x, 0, 70, out, &scale, &shift);
  CHECK(!isfinite(scale * operand_number(KIND_I8, out, 3) - shift));
  guarded_release();
}

/* A group with a number that is special: the whole group shows it, the other groups do not. */
static void test_groups_of_special_numbers(enum kind kind)
{
  const size_t inputs = group_size(kind) + 6;
  const struct matrix matrix = {.kind = kind, .inputs = inputs};
  const float special[] = {NAN, INFINITY, -INFINITY, 0, 1e-40f, -1e37f};
  for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
    float *x = uniform_floats(inputs, -1, 1), scale, shift;
    uint32_t *out = guarded(operand_words(&matrix), sizeof *out);
    const float *of_groups = (const float *)(out + 2 * group_words(kind));
    for (size_t k = 0; k < group_size(kind); k++)
      x[k] = i < 3 ? x[k] : special[i];
    x[3] = special[i];
    convert_row(&matrix, x, 0, inputs, out, &scale, &shift);
    CHECK(isfinite(of_groups[1]) && isfinite(of_groups[3]));
    CHECK(i < 3 ? isnan(of_groups[0]) && isnan(of_groups[2]) : isfinite(of_groups[0]));
    CHECK(i < 3 ||
          fabs(of_groups[0] * operand_number(kind, out, 3) - special[i]) <= 1e-6 * fabs(special[i]) + 1e-36);
  }
  guarded_release();
}

static float activated(enum activation activation, float x)
{
  float all[LANES];
  vec_store(all, activate(activation, vec_of(x)));
  return all[LANES - 1];
}

static void test_activation(enum activation activation)
{
  const double tolerance = activation == ACT_GELU_ROUGH ? 4e-4 : 5e-7;
  for (double x = -60; x <= 60; x += 0.0173) {
    const double wanted = reference_activation(activation, (float)x);
    CHECK(fabs(activated(activation, (float)x) - wanted) <= tolerance * (1 + fabs(x) + fabs(wanted)));
  }
  for (int power = -40; power <= 38; power++) /* from denormal to nearly infinite */
    for (int sign = -1; sign <= 1; sign += 2) {
      const float x = (float)(sign * pow(10, power));
      const double wanted = reference_activation(activation, x), got = activated(activation, x);
      CHECK(wanted > FLT_MAX ? isinf(got) : fabs(got - wanted) <= tolerance * (1 + fabs(x) + fabs(wanted)));
    }
  CHECK(isnan(activated(activation, NAN)));
  const float most = activated(activation, INFINITY);
  CHECK(activation == ACT_TANH ? most == 1 : isinf(most) && most > 0);
}

void test_rows(void)
{
  for (size_t columns = 1; columns <= 70; columns += columns < 35 ? 1 : 7) {
    for (enum norm_kind kind = 0; kind < NORMS; kind++)
      test_norm(kind, columns, columns % 3 > 0);
    for (int from_bf16 = 0; from_bf16 < 2; from_bf16++)
      for (enum kind kind = 0; kind < KINDS; kind++)
        test_conversion(kind, from_bf16, columns);
  }
  test_norm_of_nan_and_of_a_constant();
  test_quantization_of_special_rows();
  test_groups_of_special_numbers(KIND_G8);
  test_groups_of_special_numbers(KIND_G4_SMALL);
  for (enum activation activation = 0; activation < ACTIVATIONS; activation++)
    test_activation(activation);
}

/* Embeddings */

static void test_embed(size_t rows, size_t columns, size_t lookups, enum norm_kind kind)
{
  struct embedding embedding = {
      .count = lookups, .columns = columns, .norm = {uniform_floats(columns, -2, 2), NULL, 1e-5f, kind}};
  struct ids ids[3];
  float *out = guarded(rows * columns, sizeof *out);
  double *sum = guarded(columns, sizeof *sum), *expected = guarded(columns, sizeof *expected);
  for (size_t l = 0; l < lookups; l++) { /* every second one repeats its ids */
    const size_t count = l % 2 ? (rows + 2) / 3 : rows, table_rows = 5 + l;
    int64_t *numbers = guarded(count, sizeof *numbers);
    for (size_t i = 0; i < count; i++)
      numbers[i] = i == 0 ? (int64_t)table_rows - 1 : (int64_t)below(table_rows);
    ids[l] = (struct ids){numbers, count};
    embedding.tables[l] = (struct table){uniform_floats(table_rows * columns, -2, 2), table_rows};
  }
  for (unsigned threads = 1; threads <= 2; threads++) {
    CHECK(embed_run(&embedding, ids, out, rows, threads) == 0);
    for (size_t row = 0; row < rows; row++) {
      memset(sum, 0, columns * sizeof *sum);
      for (size_t l = 0; l < lookups; l++)
        for (size_t i = 0; i < columns; i++)
          sum[i] += embedding.tables[l].numbers[(size_t)ids[l].numbers[row % ids[l].count] * columns + i];
      reference_norm(&embedding.norm, sum, columns, expected);
      for (size_t i = 0; i < columns; i++)
        CHECK(fabs(out[row * columns + i] - expected[i]) <= 1e-4 * (1 + fabs(expected[i])));
    }
  }
  guarded_release();
}

static void test_embed_of_ids_that_are_no_rows(void)
{
  const int64_t bad[] = {-1, 5, INT64_MIN, INT64_MAX};
  const struct embedding embedding = {
      {{uniform_floats(5 * 33, -2, 2), 5}}, 1, 33, {NULL, NULL, 1e-5f, NORM_NONE}};
  float *out = uniform_floats(2 * 33, 7, 7);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    const int64_t numbers[] = {0, bad[i]};
    const struct ids ids = {numbers, 2};
    CHECK(embed_run(&embedding, &ids, out, 2, 1) == EDOM);
    CHECK(out[0] == 7 && out[65] == 7);
  }
  guarded_release();
}

void test_embeddings(void)
{
  for (size_t columns = 1; columns <= 70; columns += 23)
    for (size_t lookups = 1; lookups <= 3; lookups++)
      for (enum norm_kind kind = 0; kind < NORMS; kind++)
        test_embed(1 + below(40), columns, lookups, kind);
  test_embed(3000, 64, 3, NORM_LAYER); /* enough for several threads */
  test_embed(0, 64, 1, NORM_LAYER);
  test_embed_of_ids_that_are_no_rows();
}

/* Matrices */

struct shape {
  size_t rows, columns, in_features;
};

static double sum_of_sizes(const struct weight *weight, const double *x, size_t column)
{
  double sum = 1;
  for (size_t k = 0; k < weight->in_features; k++)
    sum += fabs(x[k] * weight->numbers[column * weight->in_features + k]);
  return weight->matrix.kind >= KIND_I8 ? 10 * sum : sum; /* also of the zero or minimum, which are summed */
}

static void test_product(enum kind kind, struct shape shape, int bf16, enum activation activation, int extras)
{
  const size_t stride = shape.columns + 5, panels = (shape.columns + PANEL - 1) / PANEL;
  const struct weight weight = make_weight(kind, shape.columns, shape.in_features, shape.rows % 2 == 0);
  const struct rows rows =
      make_rows(kind, shape.rows, shape.in_features, operand_words(&weight.matrix) + (size_t)extras * 3);
  char *out = guarded((shape.rows - 1) * stride + shape.columns, bf16 ? 2 : 4);
  float *factor = uniform_floats(shape.rows * stride, -1, 1), *addend = uniform_floats(3 * stride, -1, 1);
  int32_t *index = guarded(shape.rows, sizeof *index);
  for (size_t row = 0; row < shape.rows; row++)
    index[row] = (int32_t)below(3);
  const struct result result = {.rows = out,
                                .stride = stride,
                                .bf16 = bf16,
                                .activation = activation,
                                .factor = extras ? factor : NULL,
                                .factor_stride = stride,
                                .addend = extras ? addend : NULL,
                                .addend_stride = stride,
                                .addend_index = extras ? index : NULL};
  const size_t middle = below(panels + 1);
  gemm(&weight.matrix, &rows.operand, shape.rows, 0, middle, &result);
  gemm(&weight.matrix, &rows.operand, shape.rows, middle, panels, &result);
  double *expected = guarded(shape.columns, sizeof *expected);
  for (size_t row = 0; row < shape.rows; row++) {
    const double *x = rows.numbers + row * shape.in_features;
    reference_linear(&weight, x, expected);
    for (size_t c = 0; c < shape.columns; c++) {
      double wanted = reference_activation(activation, expected[c]);
      if (extras)
        wanted = wanted * factor[row * stride + c] + addend[(size_t)index[row] * stride + c];
      const double got =
          bf16 ? bf16_to(((uint16_t *)out)[row * stride + c]) : ((float *)out)[row * stride + c];
      CHECK(fabs(got - wanted) <= 3e-6 * sum_of_sizes(&weight, x, c) + (bf16 ? fabs(wanted) / 256 : 0));
    }
  }
  guarded_release();
}

static void test_linear(enum kind kind, struct shape shape, unsigned threads)
{
  const struct weight weight = make_weight(kind, shape.columns, shape.in_features, 1);
  const int bf16 = (int)below(2); /* input and output */
  double *x = guarded(shape.rows * shape.in_features, sizeof *x),
         *expected = guarded(shape.columns, sizeof *expected);
  for (size_t i = 0; i < shape.rows * shape.in_features; i++)
    x[i] = uniform(-1, 1);
  const void *rows = numbers_of(bf16 ? KIND_BF16 : KIND_F32, shape.rows * shape.in_features, x);
  void *out = guarded(shape.rows * shape.columns, number_bytes(bf16));
  CHECK(linear_run(&weight.matrix, ACT_SILU, rows, out, bf16, shape.rows, threads) == 0);
  const double tolerance = kind == KIND_F32 ? 1e-5 : kind == KIND_BF16 ? 2e-2 : 5e-2;
  for (size_t row = 0; row < shape.rows; row++) {
    reference_linear(&weight, x + row * shape.in_features, expected);
    for (size_t c = 0; c < shape.columns; c++) {
      const size_t at = row * shape.columns + c;
      const double got = bf16 ? bf16_to(((uint16_t *)out)[at]) : ((float *)out)[at],
                   wanted = reference_activation(ACT_SILU, expected[c]);
      CHECK(fabs(got - wanted) < tolerance + (bf16 ? fabs(wanted) / 128 : 0));
    }
  }
  guarded_release();
}

static void *no_memory(size_t alignment, size_t size)
{
  (void)alignment, (void)size;
  return NULL;
}

static void test_no_rows_and_no_memory(void)
{
  const struct weight weight = make_weight(KIND_F32, 40, 512, 1); /* 512: its rows are copied */
  float *x = uniform_floats(512, -1, 1), *out = guarded(40, sizeof *out);
  CHECK(linear_run(&weight.matrix, ACT_NONE, x, out, 0, 0, 2) == 0);
  scratch_allocate = no_memory;
  CHECK(linear_run(&weight.matrix, ACT_NONE, x, out, 0, 1, 2) == ENOMEM);
  scratch_allocate = aligned_alloc;
  guarded_release();
}

/* Inputs of which weights and numbers are far larger than all others: exact, they cost the others nothing. */
static void test_exact_inputs(size_t rows, size_t columns, size_t in_features, size_t count)
{
  struct weight weight = make_weight(KIND_I8, columns, in_features, 1);
  const size_t width = matrix_panels(&weight.matrix) * PANEL;
  float *exact = guarded(EXACT * width, sizeof *exact), *x = uniform_floats(rows * in_features, -1, 1);
  float *factors = uniform_floats(in_features, 1, 1), *out = guarded(rows * columns, sizeof *out);
  int32_t *inputs = guarded(EXACT, sizeof *inputs);
  memset(exact, 0, EXACT * width * sizeof *exact);
  memset(inputs, 0, EXACT * sizeof *inputs);
  for (size_t e = 0; e < count; e++) {
    inputs[e] = (int32_t)(in_features - 1 - e);
    factors[inputs[e]] = 0;
    for (size_t column = 0; column < columns; column++)
      exact[e * width + column] = (float)uniform(-300, 300);
    for (size_t row = 0; row < rows; row++)
      x[row * in_features + (size_t)inputs[e]] = (float)uniform(-300, 300);
  }
  weight.matrix.factors = factors;
  weight.matrix.exact = exact;
  weight.matrix.exact_inputs = inputs;
  CHECK(linear_run(&weight.matrix, ACT_NONE, x, out, 0, rows, 2) == 0);
  for (size_t row = 0; row < rows; row++)
    for (size_t column = 0; column < columns; column++) {
      double expected = weight.matrix.bias[column], size = 1;
      for (size_t k = 0; k < in_features; k++) {
        double number = factors[k] * weight.numbers[column * in_features + k];
        for (size_t e = 0; e < count; e++)
          number = (size_t)inputs[e] == k ? exact[e * width + column] : number;
        expected += x[row * in_features + k] * number;
        size += fabs(factors[k] * weight.numbers[column * in_features + k]) / 100 + fabs(number) * 1e-4;
      }
      CHECK(fabs(out[row * columns + column] - expected) <= size);
    }
  guarded_release();
}

/* Whole numbers in groups whose scales are 1: each sum is exact, and no sum of the largest overflows. */
static void test_sums_of_groups(enum kind kind, size_t rows, int largest)
{
  enum { INPUTS = 3 * GROUP, COLUMNS = PANEL + 3 };
  struct weight weight = make_weight(kind, COLUMNS, INPUTS, 0);
  const size_t size = group_size(kind), words = size / kind_numbers(kind) + 1;
  uint32_t *panels = (uint32_t *)weight.matrix.panels;
  for (size_t i = 0; i < 2 * weight.matrix.words * PANEL; i++)
    if (i / PANEL % words == words - 1)
      panels[i] = bf16_of(1);
    else
      panels[i] = largest ? UINT32_MAX : panels[i];
  float *x = uniform_floats(rows * INPUTS, 0, 0), *out = guarded(rows * COLUMNS, sizeof *out);
  for (size_t i = 0; i < rows * INPUTS; i++)
    x[i] = largest || i % size == 5 ? 127.f - 254.f * (float)(i / INPUTS % 2) : (float)below(255) - 127;
  struct rows operand = make_rows(kind, rows, INPUTS, operand_words(&weight.matrix));
  const struct result result = {.rows = out, .stride = COLUMNS};
  for (size_t row = 0; row < rows; row++)
    fill_row(&weight.matrix, &operand.operand, row, x + row * INPUTS, 0, INPUTS);
  gemm(&weight.matrix, &operand.operand, rows, 0, 2, &result);
  for (size_t row = 0; row < rows; row++)
    for (size_t column = 0; column < COLUMNS; column++) {
      const uint32_t *start = panels + column / PANEL * weight.matrix.words * PANEL + column % PANEL;
      double expected = 0;
      for (size_t k = 0; k < INPUTS; k++) {
        const uint32_t word = start[(k / size * words + k % size / kind_numbers(kind)) * PANEL];
        const uint32_t byte = word >> k % 4 * 8,
                       q = is_halved(kind) ? byte >> k % 8 / 4 * 4 & 15 : byte & 255;
        expected += number_held(kind, q) * x[row * INPUTS + k];
      }
      CHECK(out[row * COLUMNS + column] == (float)expected);
    }
  guarded_release();
}

/* Of few panels, a thread may have none: behind the last one nothing can be read. */
static void test_no_panels(enum kind kind)
{
  const struct weight weight = make_weight(kind, PANEL, 64, 0);
  const size_t rows = SPLIT_ROWS, room = operand_room(&weight.matrix);
  float *scales = guarded(rows, sizeof *scales), *shifts = guarded(rows, sizeof *shifts);
  uint32_t *words = guarded(rows * room, sizeof *words);
  const struct operand operand = operand_of(&weight.matrix, rows, words, scales, shifts);
  const struct result result = {.rows = uniform_floats(rows * PANEL, 7, 7), .stride = PANEL};
  memset(words, 0, rows * room * sizeof *words);
  gemm(&weight.matrix, &operand, rows, 1, 1, &result);
  CHECK(((float *)result.rows)[rows * PANEL - 1] == 7);
  guarded_release();
}

void test_gemm(void)
{
  for (size_t rows = 1; rows < 100; rows += 1 + rows)
    for (size_t count = 0; count <= EXACT; count++)
      test_exact_inputs(rows, 1 + below(80), EXACT + below(70), count);
  for (size_t rows = 1; rows <= 16; rows++)
    for (int largest = 0; largest < 2; largest++)
      for (enum kind kind = KIND_G8; kind < KINDS; kind++)
        test_sums_of_groups(kind, rows, largest);
  for (enum kind kind = 0; kind < KINDS; kind++) {
    test_no_panels(kind);
    for (size_t rows = 1; rows <= 40; rows++)
      for (int i = 0; i < 4; i++) {
        const size_t in = (1 + below(70)) * kind_numbers(kind) - below(kind_numbers(kind));
        test_product(kind, (struct shape){rows, 1 + below(100), in}, i % 2,
                     (enum activation)below(ACT_GELU_ROUGH), i / 2);
      }
    for (size_t rows = 1; rows < 200; rows += 1 + rows / 2) {
      test_linear(kind, (struct shape){rows, 1 + below(100), 1 + below(200)}, 1);
      test_linear(kind, (struct shape){rows, 70, 512}, 3);
    }
  }
  test_no_rows_and_no_memory();
}
