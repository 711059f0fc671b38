/* experts.h and mixture.h. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernel_reference.h"
#include "kernels/experts.h"
#include "kernels/mixture.h"
#include "kernels/scratch.h"
#include "kernels/team.h"

enum { COUNT = 6, MOST_ROWS = 300 };

/* Of all experts, each in pages of its own, and the numbers that they then stand for. */
struct made_experts {
  struct experts experts;
  struct weight gate[COUNT], up[COUNT], down[COUNT];
  double *biases[COUNT]; /* of gate, of up, of down */
  char *wide, *narrow;   /* the memory of gate and up, and of down */
};

/* What a mixture is made of, in the order of `struct experts`. */
struct form {
  enum kind kind;
  size_t hidden, inner;
  int gated, biased, alternate;
  float limit;
};

/* Bytes of a packed matrix as one piece, with what int8 needs behind the panels. */
static size_t piece(const struct matrix *matrix)
{
  const size_t panels = matrix_panels(matrix) * PANEL;
  return (panels * matrix->words + 2 * panels + matrix->inputs) * sizeof(uint32_t) / 64 * 64 + 64;
}

/* A copy of the matrix in a piece of memory. */
static struct matrix put(const struct matrix *from, char *place)
{
  struct matrix to = *from;
  const size_t columns = matrix_panels(from) * PANEL, words = columns * from->words;
  uint32_t *panels = (uint32_t *)place;
  float *scales = (float *)(panels + words), *sums = scales + columns, *factors = sums + columns;
  memcpy(panels, from->panels, words * sizeof *panels);
  to.panels = panels;
  if (from->kind == KIND_I8) {
    memcpy(scales, from->scales, from->columns * sizeof *scales);
    memcpy(sums, from->sums, from->columns * sizeof *sums);
    memcpy(factors, from->factors, from->inputs * sizeof *factors);
    to.scales = scales, to.sums = sums, to.factors = factors;
  }
  return to;
}

static size_t whole_pages(size_t bytes)
{
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

static char *pages(size_t bytes)
{
  char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(start != MAP_FAILED);
  return start;
}

/* The biases of an expert, written where the kernels read them in bfloat16. */
static double *make_biases(const struct form *form, size_t e, uint16_t *wide, uint16_t *narrow)
{
  const size_t inner = form->inner, halves = form->gated ? 2 : 1;
  double *biases = guarded(2 * inner + form->hidden, sizeof *biases);
  for (size_t i = 0; i < 2 * inner + form->hidden; i++)
    biases[i] = form->biased ? bf16_to(bf16_of((float)uniform(-1, 1))) : 0;
  for (size_t half = 2 - halves; form->biased && half < 2; half++)
    for (size_t i = 0; i < inner; i++)
      wide[e * halves * inner + (form->alternate ? 2 * i + half : (half + halves - 2) * inner + i)] =
          bf16_of((float)biases[half * inner + i]);
  for (size_t i = 0; form->biased && i < form->hidden; i++)
    narrow[e * form->hidden + i] = bf16_of((float)biases[2 * inner + i]);
  return biases;
}

static void make_experts(const struct form *form, struct made_experts *made)
{
  const size_t halves = form->gated ? 2 : 1;
  uint16_t *wide = guarded(COUNT * halves * form->inner, sizeof *wide);
  uint16_t *narrow = guarded(COUNT * form->hidden, sizeof *narrow);
  size_t of_up = 0;
  for (size_t e = 0; e < COUNT; e++) {
    made->up[e] = make_weight(form->kind, form->inner, form->hidden, 0);
    made->gate[e] = make_weight(form->kind, form->inner, form->hidden, 0);
    made->down[e] = make_weight(form->kind, form->hidden, form->inner, 0);
    made->biases[e] = make_biases(form, e, wide, narrow);
    of_up = piece(&made->up[e].matrix);
  }
  struct experts *experts = &made->experts;
  *experts = (struct experts){.count = COUNT,
                              .hidden = form->hidden,
                              .inner = form->inner,
                              .gated = form->gated,
                              .up_step = whole_pages(2 * of_up),
                              .down_step = whole_pages(piece(&made->down[0].matrix)),
                              .activation = ACT_SILU,
                              .limit = form->limit,
                              .slope = 1.702f,
                              .shift = 1,
                              .alternate = form->alternate};
  if (form->biased)
    experts->up_bias = (struct expert_bias){wide, 1}, experts->down_bias = (struct expert_bias){narrow, 1};
  made->wide = pages(COUNT * experts->up_step);
  made->narrow = pages(COUNT * experts->down_step);
  for (size_t e = COUNT; e-- > 0;) {
    experts->gate = put(&made->gate[e].matrix, made->wide + e * experts->up_step);
    experts->up = put(&made->up[e].matrix, made->wide + e * experts->up_step + of_up);
    experts->down = put(&made->down[e].matrix, made->narrow + e * experts->down_step);
  }
}

static void release(struct made_experts *made)
{
  CHECK(munmap(made->wide, COUNT * made->experts.up_step) == 0);
  CHECK(munmap(made->narrow, COUNT * made->experts.down_step) == 0);
  guarded_release();
}

/* What an expert gives for a row. */
static void reference_expert(const struct form *form, const struct made_experts *made, size_t e,
                             const double *x, double *out)
{
  double gate[form->inner], up[form->inner];
  const double *biases = made->biases[e];
  reference_linear(&made->gate[e], x, gate);
  reference_linear(&made->up[e], x, up);
  for (size_t i = 0; i < form->inner; i++) {
    gate[i] += biases[i], up[i] += biases[form->inner + i];
    if (!form->gated)
      up[i] = reference_activation(ACT_SILU, up[i]);
    else if (!(form->limit > 0))
      up[i] *= reference_activation(ACT_SILU, gate[i]);
    else
      up[i] = (fmax(-form->limit, fmin(form->limit, up[i])) + 1) *
              reference_activation(ACT_QUICK_GELU, fmin(form->limit, gate[i]));
  }
  reference_linear(&made->down[e], up, out);
  for (size_t i = 0; i < form->hidden; i++)
    out[i] += biases[2 * form->inner + i];
}

/* Tokens and their experts; `cold`: an expert that nobody chooses. */
struct tokens {
  struct experts_call call;
  double *numbers, *weights;
};

static struct tokens make_tokens(const struct form *form, size_t rows, size_t chosen, size_t cold, int bf16)
{
  const size_t count = rows * form->hidden, pairs = rows * chosen;
  struct tokens tokens = {.numbers = guarded(count, sizeof(double)),
                          .weights = guarded(pairs, sizeof(double))};
  const enum kind kind = bf16 ? KIND_BF16 : KIND_F32;
  for (size_t i = 0; i < count; i++)
    tokens.numbers[i] = uniform(-2, 2);
  for (size_t i = 0; i < pairs; i++)
    tokens.weights[i] = uniform(0, 1);
  int64_t *index = guarded(pairs, sizeof *index);
  for (size_t row = 0; row < rows; row++) { /* most choose the same experts */
    const size_t first = below(4) ? 0 : below(COUNT - 1);
    for (size_t c = 0; c < chosen; c++)
      index[row * chosen + c] = (int64_t)((cold + 1 + (first + c) % (COUNT - 1)) % COUNT);
  }
  tokens.call = (struct experts_call){.input = numbers_of(kind, count, tokens.numbers),
                                      .output = guarded(count, number_bytes(bf16)),
                                      .bf16 = bf16,
                                      .rows = rows,
                                      .index = index,
                                      .weights = numbers_of(kind, pairs, tokens.weights),
                                      .weights_bf16 = bf16,
                                      .chosen = chosen};
  return tokens;
}

static void check_row(const struct form *form, const struct made_experts *made, const struct tokens *tokens,
                      size_t row)
{
  static const double bounds[KINDS] = {5e-6, 6e-3, 4e-2, 4e-2, 4e-2,
                                       4e-2, 4e-2, 4e-2, 4e-2}; /* what rounding activations costs */
  const struct experts_call *call = &tokens->call;
  double wanted[form->hidden], of_one[form->hidden], size = 0.05;
  memset(wanted, 0, sizeof wanted);
  for (size_t c = 0; c < call->chosen; c++) {
    const size_t pair = row * call->chosen + c;
    reference_expert(form, made, (size_t)call->index[pair], tokens->numbers + row * form->hidden, of_one);
    for (size_t i = 0; i < form->hidden; i++)
      wanted[i] += tokens->weights[pair] * of_one[i], size = fmax(size, fabs(of_one[i]));
  }
  for (size_t i = 0; i < form->hidden; i++) {
    const size_t at = row * form->hidden + i;
    const double got =
        call->bf16 ? bf16_to(((const uint16_t *)call->output)[at]) : ((const float *)call->output)[at];
    CHECK(fabs(got - wanted[i]) <= (bounds[form->kind] + (call->bf16 ? 1e-2 : 0)) * size);
  }
}

/* Experts that are chosen by no token cannot be read. */
static void test_form(const struct form *form, size_t rows, size_t chosen, unsigned threads)
{
  struct made_experts made;
  make_experts(form, &made);
  const size_t cold = below(COUNT);
  const struct experts *experts = &made.experts;
  CHECK(mprotect(made.wide + cold * experts->up_step, experts->up_step, PROT_NONE) == 0);
  CHECK(mprotect(made.narrow + cold * experts->down_step, experts->down_step, PROT_NONE) == 0);
  const struct tokens tokens = make_tokens(form, rows, chosen, cold, (int)below(2));
  const size_t bytes = experts_bytes;
  experts_bytes = below(2) ? bytes : (size_t)1 << (10 + below(10)); /* some tokens at a time */
  CHECK(experts_run(experts, &tokens.call, threads) == 0);
  experts_bytes = bytes;
  for (size_t row = 0; row < rows; row += 1 + below(rows / 8 + 1))
    check_row(form, &made, &tokens, row);
  release(&made);
}

/* A router before them */

static const struct form routed = {KIND_F32, 37, 20, 1, 0, 0, 0};

/* The sum of the highest `counted` of experts [first, last). */
static double reference_group(const double *ranks, size_t first, size_t last, size_t counted)
{
  double sum = 0;
  for (size_t e = first; e < last; e++) {
    size_t higher = 0;
    for (size_t other = first; other < last; other++)
      higher += ranks[other] > ranks[e];
    sum += higher < counted ? ranks[e] : 0;
  }
  return sum;
}

/* Whether an expert's group is among those with the highest scores. */
static int reference_is_open(const struct router *router, const double *ranks, size_t expert)
{
  const size_t size = COUNT / router->groups, own = expert / size;
  size_t higher = 0;
  for (size_t g = 0; g < router->groups; g++)
    higher += reference_group(ranks, g * size, (g + 1) * size, router->counted) >
              reference_group(ranks, own * size, (own + 1) * size, router->counted);
  return higher < router->chosen_groups;
}

/* What each expert's result counts for a row, or 0 for those that are not among the chosen. */
static void reference_router(const struct router *router, const double *weight, const double *row,
                             double *shares)
{
  double scores[COUNT], ranks[COUNT], of_chosen = 0, whole = 0;
  for (size_t e = 0; e < COUNT; e++) {
    scores[e] = router->bias ? router->bias[e] : 0;
    for (size_t i = 0; i < routed.hidden; i++)
      scores[e] += weight[e * routed.hidden + i] * row[i];
    whole += exp(scores[e]);
  }
  for (size_t e = 0; e < COUNT; e++) {
    scores[e] = router->sigmoid ? 1 / (1 + exp(-scores[e])) : exp(scores[e]) / whole;
    ranks[e] = scores[e] + (router->correction ? router->correction[e] : 0);
  }
  for (size_t e = 0; e < COUNT; e++) {
    size_t higher = 0;
    for (size_t other = 0; other < COUNT; other++)
      higher += reference_is_open(router, ranks, other) && ranks[other] > ranks[e];
    shares[e] = reference_is_open(router, ranks, e) && higher < router->chosen ? scores[e] : 0;
    of_chosen += shares[e];
  }
  for (size_t e = 0; e < COUNT; e++)
    shares[e] *= router->scale / (router->normalised ? fmax(of_chosen, router->least) : 1);
}

static struct router make_router(size_t chosen, int normalised)
{
  struct router router = {.bias = below(2) ? uniform_floats(COUNT, -1, 1) : NULL,
                          .correction = below(2) ? uniform_floats(COUNT, -1, 1) : NULL,
                          .sigmoid = (int)below(2),
                          .chosen = chosen,
                          .groups = 1 + below(3),
                          .counted = 1 + below(2),
                          .normalised = normalised,
                          .least = below(2) ? .6f : 0,
                          .scale = below(2) ? 1.7f : 1};
  const size_t fewest = (chosen * router.groups + COUNT - 1) / COUNT;
  router.chosen_groups = fewest + below(router.groups - fewest + 1);
  return router;
}

struct mixing {
  const struct mixture *mixture;
  float *rows;
  size_t count;
  char *memory;
};

static void mix(void *context, const struct member *self)
{
  const struct mixing *mixing = context;
  mixture_run(mixing->mixture, mixing->rows, mixing->count, mixing->memory, self);
}

static void test_mixture(size_t count, size_t chosen, int normalised, unsigned threads)
{
  const size_t hidden = routed.hidden;
  struct made_experts made;
  make_experts(&routed, &made);
  const enum kind kind = below(2) ? KIND_BF16 : KIND_F32;
  double *router = guarded(COUNT * hidden, sizeof *router),
         *numbers = guarded(count * hidden, sizeof *numbers);
  for (size_t i = 0; i < COUNT * hidden; i++)
    router[i] = uniform(-1, 1);
  for (size_t i = 0; i < count * hidden; i++)
    numbers[i] = uniform(-1, 1);
  struct mixture mixture = {.experts = made.experts, .router = make_router(chosen, normalised)};
  mixture.router.weight = numbers_of(kind, COUNT * hidden, router);
  mixture.router.bf16 = kind == KIND_BF16;
  const size_t bytes = experts_bytes;
  experts_bytes = below(2) ? bytes : 1 << 14;
  struct mixing mixing = {&mixture, numbers_of(KIND_F32, count * hidden, numbers), count, NULL};
  for (size_t rows = 1; rows < count; rows++) /* a chunk may be shorter than the one that memory is for */
    CHECK(mixture_room(&mixture, rows) <= mixture_room(&mixture, count));
  mixing.memory = aligned_alloc(64, (mixture_room(&mixture, count) + 63) / 64 * 64);
  team_run(threads, mix, &mixing);
  free(mixing.memory);
  experts_bytes = bytes;
  for (size_t row = 0; row < count; row += 1 + below(count / 8 + 1)) {
    double shares[COUNT], of_one[hidden], wanted[hidden];
    memset(wanted, 0, sizeof wanted);
    reference_router(&mixture.router, router, numbers + row * hidden, shares);
    for (size_t e = 0; e < COUNT; e++) {
      reference_expert(&routed, &made, e, numbers + row * hidden, of_one);
      for (size_t i = 0; i < hidden; i++)
        wanted[i] += shares[e] * of_one[i];
    }
    for (size_t i = 0; i < hidden; i++)
      CHECK(fabs(mixing.rows[row * hidden + i] - wanted[i]) < 1e-5);
  }
  release(&made);
}

static void *none(size_t alignment, size_t size)
{
  return NULL;
}

static void test_what_is_refused(void)
{
  const struct form form = {KIND_F32, 8, 8, 1, 0, 0, 0};
  struct made_experts made;
  make_experts(&form, &made);
  struct tokens tokens = make_tokens(&form, 2, 2, 0, 0);
  int64_t *index = (int64_t *)tokens.call.index;
  for (int64_t wrong = -1; wrong <= COUNT; wrong += COUNT + 1) {
    const int64_t right = index[3];
    index[3] = wrong;
    CHECK(experts_run(&made.experts, &tokens.call, 1) == EDOM);
    index[3] = right;
  }
  scratch_allocate = none;
  CHECK(experts_run(&made.experts, &tokens.call, 1) == ENOMEM);
  scratch_allocate = aligned_alloc;
  const uint32_t *untouched = tokens.call.output;
  CHECK(untouched[0] == 0xffffffff);
  CHECK(experts_run(&made.experts, &tokens.call, 1) == 0);
  tokens.call.rows = 0;
  CHECK(experts_run(&made.experts, &tokens.call, 1) == 0);
  release(&made);
}

void test_experts(void)
{
  static const size_t rows[] = {1, 2, 7, 90, MOST_ROWS};
  for (enum kind kind = 0; kind < KINDS; kind++)
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
      const size_t hidden = 1 + below(150), inner = 1 + below(150), chosen = 1 + below(COUNT - 1);
      const unsigned threads = 1 + (unsigned)below(4);
      test_form(&(struct form){kind, hidden, inner, 1, 0, 0, 0}, rows[r], chosen, threads);
      test_form(&(struct form){kind, hidden, inner, 1, 1, 1, 0.7f}, rows[r], chosen, threads);
      test_form(&(struct form){kind, hidden, inner, (int)below(2), 1, 0, 0}, rows[r], chosen, threads);
    }
  test_what_is_refused();
  for (size_t count = 1; count < 200; count += 1 + 2 * count)
    for (size_t chosen = 1; chosen <= COUNT; chosen++)
      for (int normalised = 0; normalised < 2; normalised++)
        test_mixture(count, chosen, normalised, 1 + (unsigned)below(4));
}
