#include "experts.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "linear.h"
#include "rows.h"
#include "scratch.h"

size_t experts_bytes = 128 << 20;
enum { SHARES = 16 }; /* for each thread: parts of the work, which differ in their rows */

/* Rows that one expert computes together: sorted by expert, they lie one behind the other. */
struct block {
  size_t expert, number; /* which of all, and of those that have rows */
  size_t first, rows;
};

/* The work on some of the tokens, and what it is done in. A pair is a token and one of its experts. */
struct job {
  struct experts experts;
  struct experts_call call;
  size_t most;                 /* tokens at a time */
  size_t first, tokens, pairs; /* the first token */
  size_t active;               /* experts with rows */
  struct block *blocks;
  size_t count;        /* of blocks */
  size_t room;         /* words of an operand's row, for the larger of both */
  size_t *ends;        /* [experts + 1]: up to where the sorted pairs of each reach */
  uint32_t *tokens_of; /* [pairs]: sorted by expert */
  uint32_t *places;    /* [tokens][chosen]: where each pair lies when sorted */
  uint32_t *words;     /* [pairs][room] */
  float *scales, *shifts;
  float *biases;    /* [active][2 inner + hidden] */
  float *up, *gate; /* [pairs][inner] */
  float *results;   /* [pairs][hidden], in the place of `up` and `gate` */
  atomic_size_t next_up, next_down;
};

/* Memory for `tokens`; if base is NULL, only the size is counted. */
static size_t divide(struct job *job, size_t tokens, char *base)
{
  const struct experts *experts = &job->experts;
  const size_t pairs = tokens * job->call.chosen, active = smaller(pairs, experts->count);
  const size_t biases = experts->up_bias.numbers == NULL ? 0 : active;
  const size_t wide = larger(experts->hidden, 2 * experts->inner);
  size_t used = 0;
  job->room = larger(operand_room(&experts->up), operand_room(&experts->down));
  job->ends = carve(base, &used, experts->count + 1, sizeof *job->ends);
  job->blocks = carve(base, &used, active + pairs / linear_block(&experts->up) + 1, sizeof *job->blocks);
  job->tokens_of = carve(base, &used, pairs, sizeof *job->tokens_of);
  job->places = carve(base, &used, pairs, sizeof *job->places);
  job->words = carve(base, &used, pairs * job->room, sizeof *job->words);
  job->scales = carve(base, &used, pairs, sizeof *job->scales);
  job->shifts = carve(base, &used, pairs, sizeof *job->shifts);
  job->biases = carve(base, &used, biases * (2 * experts->inner + experts->hidden), sizeof *job->biases);
  job->up = job->results = carve(base, &used, pairs * wide, sizeof *job->results);
  job->gate = base == NULL ? NULL : job->up + pairs * experts->inner;
  return used;
}

/* Which pairs each expert has: a counting sort, in which a token's pairs keep their order. */
static void sort(struct job *job)
{
  const size_t chosen = job->call.chosen;
  const int64_t *index = job->call.index + job->first * chosen;
  memset(job->ends, 0, (job->experts.count + 1) * sizeof *job->ends);
  for (size_t i = 0; i < job->pairs; i++)
    job->ends[index[i] + 1]++;
  for (size_t e = 0; e < job->experts.count; e++)
    job->ends[e + 1] += job->ends[e];
  for (size_t i = 0; i < job->pairs; i++) { /* begins become ends */
    const size_t place = job->ends[index[i]]++;
    job->places[i] = (uint32_t)place;
    job->tokens_of[place] = (uint32_t)(i / chosen);
  }
}

static void cut(struct job *job)
{
  const size_t most = linear_block(&job->experts.up);
  job->active = job->count = 0;
  for (size_t e = 0, begin = 0; e < job->experts.count; begin = job->ends[e++]) {
    const size_t rows = job->ends[e] - begin, parts = (rows + most - 1) / most;
    for (size_t part = 0; part < parts; part++) {
      const size_t first = rows * part / parts, last = rows * (part + 1) / parts;
      job->blocks[job->count++] = (struct block){e, job->active, begin + first, last - first};
    }
    job->active += rows > 0;
  }
}

/* An expert's matrix. */
static struct matrix moved(const struct matrix *first, size_t bytes, const float *bias)
{
  struct matrix matrix = *first;
  matrix.panels = (const uint32_t *)((const char *)first->panels + bytes);
  matrix.bias = bias;
  if (first->kind == KIND_I8) {
    matrix.scales = (const float *)((const char *)first->scales + bytes);
    matrix.sums = (const float *)((const char *)first->sums + bytes);
    matrix.factors = (const float *)((const char *)first->factors + bytes);
  }
  return matrix;
}

enum which { GATE, UP, DOWN };

static struct matrix matrix_of(const struct job *job, const struct block *block, enum which which)
{
  const struct experts *experts = &job->experts;
  const size_t inner = experts->inner,
               bytes = block->expert * (which == DOWN ? experts->down_step : experts->up_step);
  const struct matrix *first = which == GATE ? &experts->gate : which == UP ? &experts->up : &experts->down;
  const float *bias = job->biases + block->number * (2 * inner + experts->hidden) + inner * which;
  return moved(first, bytes, experts->up_bias.numbers == NULL ? NULL : bias);
}

static struct operand operand_at(const struct job *job, const struct matrix *matrix,
                                 const struct block *block)
{
  return operand_of(matrix, block->rows, job->words + block->first * job->room, job->scales + block->first,
                    job->shifts + block->first);
}

/* The biases of the expert that a block belongs to, as floats: of gate, up and down. */
static void fill_biases(const struct job *job, const struct block *block)
{
  const struct experts *experts = &job->experts;
  const struct expert_bias *wide = &experts->up_bias, *narrow = &experts->down_bias;
  const size_t inner = experts->inner, numbers = inner * (experts->gated ? 2 : 1);
  float *biases = job->biases + block->number * (2 * inner + experts->hidden);
  const char *from = (const char *)wide->numbers + block->expert * numbers * number_bytes(wide->bf16);
  if (!experts->alternate) {
    copy_numbers(from, wide->bf16, experts->gated ? biases : biases + inner, 0, numbers);
  } else {
    for (size_t i = 0; i < inner; i++)
      for (size_t half = 0; half < 2; half++)
        copy_numbers(from + (2 * i + half) * number_bytes(wide->bf16), wide->bf16, biases + half * inner + i,
                     0, 1);
  }
  copy_numbers((const char *)narrow->numbers + block->expert * experts->hidden * number_bytes(narrow->bf16),
               narrow->bf16, biases + 2 * inner, 0, experts->hidden);
}

/* gate becomes what goes down, where gate and up have a limit. */
static void limit_row(const struct experts *experts, float *gate, const float *up)
{
  const vec limit = vec_of(experts->limit), shift = vec_of(experts->shift);
  for (size_t i = 0; i < experts->inner; i += LANES) {
    const vec_mask some = lanes((long)(experts->inner - i));
    const vec x = vec_min(limit, vec_load_some(gate + i, some));
    const vec y = bounded_by(vec_load_some(up + i, some), experts->limit);
    vec_store_some(gate + i, some, vec_mul(times_sigmoid(x, experts->slope), vec_add(y, shift)));
  }
}

/* Calls `row` for the member's share of all pairs. */
static void each_row(struct job *job, const struct member *self,
                     void (*row)(struct job *, const struct block *, const struct matrix *,
                                 const struct operand *, size_t),
                     enum which which)
{
  size_t begin, end;
  team_share(self, job->pairs, &begin, &end);
  for (size_t b = 0; b < job->count; b++) {
    const struct block *block = &job->blocks[b];
    const size_t first = larger(begin, block->first), last = smaller(end, block->first + block->rows);
    if (first >= last)
      continue;
    const struct matrix matrix = matrix_of(job, block, which);
    const struct operand operand = operand_at(job, &matrix, block);
    for (size_t pair = first; pair < last; pair++)
      row(job, block, &matrix, &operand, pair);
  }
}

/* A token's row as an operand of gate and up. */
static void gather(struct job *job, const struct block *block, const struct matrix *matrix,
                   const struct operand *operand, size_t pair)
{
  const struct experts_call *call = &job->call;
  const size_t hidden = job->experts.hidden, token = job->first + job->tokens_of[pair];
  const char *input = (const char *)call->input + token * hidden * number_bytes(call->bf16);
  fill_row(matrix, operand, pair - block->first, input, call->bf16, hidden);
}

/* What gate and up have given as an operand of down. */
static void convert(struct job *job, const struct block *block, const struct matrix *matrix,
                    const struct operand *operand, size_t pair)
{
  const size_t inner = job->experts.inner;
  float *row = (job->experts.gated ? job->gate : job->up) + pair * inner;
  if (job->experts.limit > 0)
    limit_row(&job->experts, row, job->up + pair * inner);
  fill_row(matrix, operand, pair - block->first, row, 0, inner);
}

static void multiply_up(struct job *job, const struct block *block, size_t first, size_t last)
{
  const struct experts *experts = &job->experts;
  const struct matrix up = matrix_of(job, block, UP);
  const struct operand operand = operand_at(job, &up, block);
  const size_t inner = experts->inner, start = block->first * inner;
  const int limited = experts->limit > 0;
  const struct result of_up = {.rows = job->up + start,
                               .stride = inner,
                               .activation = experts->gated ? ACT_NONE : experts->activation};
  const struct result of_gate = {.rows = job->gate + start,
                                 .stride = inner,
                                 .activation = limited ? ACT_NONE : experts->activation,
                                 .factor = limited ? NULL : job->up + start,
                                 .factor_stride = inner};
  gemm(&up, &operand, block->rows, first, last, &of_up);
  if (experts->gated) {
    const struct matrix gate = matrix_of(job, block, GATE);
    gemm(&gate, &operand, block->rows, first, last, &of_gate);
  }
}

static void multiply_down(struct job *job, const struct block *block, size_t first, size_t last)
{
  const struct matrix down = matrix_of(job, block, DOWN);
  const struct operand operand = operand_at(job, &down, block);
  const size_t hidden = job->experts.hidden;
  const struct result result = {.rows = job->results + block->first * hidden, .stride = hidden};
  gemm(&down, &operand, block->rows, first, last, &result);
}

/* Panels of all blocks, counted through, in parts which the threads take one after another: with few rows a
 * part is a stretch of memory, with many it is some blocks. */
static void each_part(struct job *job, const struct member *self, const struct matrix *matrix,
                      atomic_size_t *next,
                      void (*multiply)(struct job *, const struct block *, size_t, size_t))
{
  const size_t panels = matrix_panels(matrix), total = panels * job->count;
  const size_t step = larger(1, total / (SHARES * self->size));
  for (size_t begin; (begin = atomic_fetch_add(next, step)) < total;) {
    const size_t end = smaller(begin + step, total);
    for (size_t b = begin / panels; b * panels < end; b++) {
      const size_t before = b * panels;
      multiply(job, &job->blocks[b], larger(begin, before) - before, smaller(end - before, panels));
    }
  }
}

/* The sum of what its experts have given for a token, each times its weight. */
static void add_up(const struct job *job, size_t token)
{
  const struct experts_call *call = &job->call;
  const size_t hidden = job->experts.hidden, chosen = call->chosen;
  const uint32_t *places = job->places + token * chosen;
  const size_t row = job->first + token;
  char *output = (char *)call->output + row * hidden * number_bytes(call->bf16);
  for (size_t i = 0; i < hidden; i += LANES) {
    const vec_mask some = lanes((long)(hidden - i));
    vec sum = vec_zero();
    for (size_t c = 0; c < chosen; c++) {
      const vec weight =
          vec_of(vec_sum(load_floats(call->weights, row * chosen + c, lanes(1), call->weights_bf16)));
      sum = vec_fma(weight, vec_load_some(job->results + places[c] * hidden + i, some), sum);
    }
    store_floats(output, i, some, call->bf16, sum);
  }
}

/* The next tokens. For one thread. */
static void begin(struct job *job)
{
  job->tokens = smaller(job->most, job->call.rows - job->first);
  job->pairs = job->tokens * job->call.chosen;
  job->next_up = job->next_down = 0;
  sort(job);
  cut(job);
}

static void compute(struct job *job, const struct member *self)
{
  size_t begin, end;
  for (size_t b = self->rank; job->experts.up_bias.numbers != NULL && b < job->count; b += self->size)
    if (b == 0 || job->blocks[b - 1].expert != job->blocks[b].expert)
      fill_biases(job, &job->blocks[b]);
  each_row(job, self, gather, UP);
  team_wait(self);
  each_part(job, self, &job->experts.up, &job->next_up, multiply_up);
  team_wait(self);
  each_row(job, self, convert, DOWN);
  team_wait(self);
  each_part(job, self, &job->experts.down, &job->next_down, multiply_down);
  team_wait(self);
  team_share(self, job->tokens, &begin, &end);
  for (size_t token = begin; token < end; token++)
    add_up(job, token);
}

/* Tokens that are computed together: no more of few rows than of many, so that memory for many suits few. */
static size_t together(struct job *job)
{
  return smaller(larger(1, experts_bytes / divide(job, 1, NULL)), job->call.rows);
}

enum { HEAD = (sizeof(struct job) + 63) / 64 * 64 };

size_t experts_room(const struct experts *experts, const struct experts_call *call)
{
  struct job job = {.experts = *experts, .call = *call};
  return HEAD + divide(&job, together(&job), NULL);
}

struct job *experts_begin(const struct experts *experts, const struct experts_call *call, char *memory)
{
  struct job *job = (struct job *)memory;
  memset(job, 0, sizeof *job);
  job->experts = *experts, job->call = *call;
  job->most = together(job);
  divide(job, job->most, memory + HEAD);
  begin(job);
  return job;
}

void experts_share(struct job *job, const struct member *self)
{
  const size_t rows = job->call.rows;
  for (size_t last = job->tokens; compute(job, self), last < rows; last = job->first + job->tokens) {
    team_wait(self);
    if (self->rank == 0) {
      job->first += job->tokens;
      begin(job);
    }
    team_wait(self);
  }
}

static void run(void *context, const struct member *self)
{
  experts_share(context, self);
}

int experts_run(const struct experts *experts, const struct experts_call *call, unsigned threads)
{
  for (size_t i = 0; i < call->rows * call->chosen; i++)
    if (call->index[i] < 0 || (size_t)call->index[i] >= experts->count)
      return EDOM;
  if (call->rows == 0)
    return 0;
  char *memory = scratch_allocate(64, experts_room(experts, call));
  if (memory == NULL)
    return ENOMEM;
  struct job *job = experts_begin(experts, call, memory);
  const double each = (double)experts->inner * (double)experts->hidden * (experts->gated ? 3 : 2);
  team_run(team_size(threads, (double)job->pairs * each), run, job);
  free(memory);
  return 0;
}
