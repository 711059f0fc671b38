/* Layers with a mixture, and an expert of all tokens beside it. */
#include <math.h>
#include <string.h>

#include "kernel_reference.h"
#include "kernels/team.h"

enum { HIDDEN = 70, SIZE = 16, HEADS = 2, WIDE = 97, INNER = 50, MOST = 40 };

/* down(silu(gate) up) */
struct expert {
  struct weight gate, up, down;
};

static struct expert make_expert(enum kind kind, size_t inner)
{
  return (struct expert){make_weight(kind, inner, HIDDEN, 0), make_weight(kind, inner, HIDDEN, 0),
                         make_weight(kind, HIDDEN, inner, 0)};
}

static void reference_expert(const struct expert *expert, const double *row, double *out)
{
  double gate[WIDE], up[WIDE];
  reference_linear(&expert->gate, row, gate);
  reference_linear(&expert->up, row, up);
  for (size_t i = 0; i < expert->up.matrix.columns; i++)
    up[i] *= reference_activation(ACT_SILU, gate[i]);
  reference_linear(&expert->down, up, out);
}

static double sigmoid_of_product(const double *row, const float *weight)
{
  double sum = 0;
  for (size_t i = 0; i < HIDDEN; i++)
    sum += row[i] * weight[i];
  return 1 / (1 + exp(-sum));
}

static struct norm make_norm(void)
{
  return (struct norm){uniform_floats(HIDDEN, .5, 1.5), uniform_floats(HIDDEN, -.5, .5), 1e-5f, NORM_LAYER};
}

static struct layer make_attention(enum kind kind)
{
  const size_t width = HEADS * SIZE;
  return (struct layer){.hidden = HIDDEN,
                        .heads = HEADS,
                        .key_heads = HEADS,
                        .head_size = SIZE,
                        .query = make_weight(kind, width, HIDDEN, 1).matrix,
                        .key = make_weight(kind, width, HIDDEN, 0).matrix,
                        .value = make_weight(kind, width, HIDDEN, 1).matrix,
                        .output = make_weight(kind, HIDDEN, width, 1).matrix,
                        .attention_norm = make_norm(),
                        .output_norm = make_norm(),
                        .query_norm = {.kind = NORM_NONE},
                        .key_norm = {.kind = NORM_NONE},
                        .attention_end = {.kind = NORM_NONE},
                        .output_end = {.kind = NORM_NONE},
                        .norm_first = 1,
                        .activation = ACT_SILU,
                        .scale = .3f,
                        .added = below(2) ? .4f : 1,
                        .groups = 1,
                        .copies = 1};
}

static void set_expert(struct layer *layer, const struct expert *expert)
{
  layer->gate = expert->gate.matrix, layer->up = expert->up.matrix, layer->down = expert->down.matrix;
}

/* One expert, whose weight is the sigmoid of its router's product. */
static struct mixture make_mixture(const struct expert *expert, const float *router, const float *shared_gate)
{
  return (struct mixture){.experts = {.count = 1,
                                      .hidden = HIDDEN,
                                      .inner = INNER,
                                      .gated = 1,
                                      .gate = expert->gate.matrix,
                                      .up = expert->up.matrix,
                                      .down = expert->down.matrix,
                                      .activation = ACT_SILU},
                          .router = {.weight = router,
                                     .sigmoid = 1,
                                     .chosen = 1,
                                     .groups = 1,
                                     .chosen_groups = 1,
                                     .counted = 1,
                                     .scale = 1},
                          .shared_gate = shared_gate};
}

static void run(const struct layer *layer, const struct call *call, unsigned threads)
{
  CHECK(layers_run(&layer, 1, call, threads) == 0);
}

/* What a dense layer adds says what the residual stream was before. */
static void residual_of(struct layer layer, const struct expert *shared, struct call call, float *out)
{
  struct expert none = *shared;
  const size_t words = matrix_panels(&none.down.matrix) * PANEL * none.down.matrix.words;
  uint32_t *panels = guarded(words, sizeof *panels);
  memset(panels, 0, words * sizeof *panels);
  none.down.matrix.panels = panels;
  layer.mixture = (struct mixture){.experts = {.count = 0}};
  set_expert(&layer, &none);
  call.output = out;
  run(&layer, &call, 1);
}

static void test_mixed_layer(enum kind kind, int shares, int gated, size_t rows, unsigned threads)
{
  const struct expert shared = make_expert(kind, WIDE), routed = make_expert(kind, INNER);
  const float *router = uniform_floats(HIDDEN, -.3, .3), *gate = uniform_floats(HIDDEN, -.3, .3);
  const int32_t first = 1, length = (int32_t)rows;
  struct layer layer = make_attention(kind);
  float *residual = guarded((rows + 1) * HIDDEN, sizeof *residual);
  const struct call call = {
      .input = uniform_floats((rows + 1) * HIDDEN, -2, 2),
      .output = guarded((rows + 1) * HIDDEN, sizeof(float)),
      .sequences = {.rows = rows + 1, .count = 1, .first = &first, .length = &length, .window = SIZE_MAX}};
  residual_of(layer, &shared, call, residual);
  layer.mixture = make_mixture(&routed, router, gated ? gate : NULL);
  if (shares)
    set_expert(&layer, &shared);
  run(&layer, &call, threads);
  double square = 0, size = 0;
  for (size_t row = 1; row <= rows; row++) {
    double x[HIDDEN], normed[HIDDEN], of_shared[HIDDEN], of_routed[HIDDEN];
    for (size_t i = 0; i < HIDDEN; i++)
      x[i] = residual[row * HIDDEN + i];
    reference_norm(&layer.output_norm, x, HIDDEN, normed);
    reference_expert(&shared, normed, of_shared);
    reference_expert(&routed, normed, of_routed);
    const double factor = !shares ? 0 : gated ? sigmoid_of_product(normed, gate) : 1;
    for (size_t i = 0; i < HIDDEN; i++) {
      const double added = factor * of_shared[i] + sigmoid_of_product(normed, router) * of_routed[i];
      const double far = call.output[row * HIDDEN + i] - x[i] - layer.added * added;
      square += far * far, size += layer.added * layer.added * added * added;
    }
  }
  CHECK(sqrt(square / size) < (kind == KIND_F32 ? 1e-5 : 2e-2));
  guarded_release();
}

void test_mixtures(void)
{
  for (int i = 0; i < 24; i++)
    test_mixed_layer(i % 2 ? KIND_BF16 : KIND_F32, i % 3 > 0, i % 3 > 1, 1 + below(MOST),
                     1 + (unsigned)below(4));
}
