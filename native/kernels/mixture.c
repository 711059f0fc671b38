#include "mixture.h"

#include <math.h>

#include "rows.h"
#include "scratch.h"

/* What lies in the memory of a call. */
struct choice {
  float *scores;  /* [rows][experts] */
  int64_t *index; /* [rows][chosen] */
  float *weights; /* the same */
  char *rest;
};

static struct choice divide(const struct mixture *mixture, size_t rows, char *base, size_t *used)
{
  struct choice choice = {NULL};
  choice.scores = carve(base, used, rows * mixture->experts.count, sizeof *choice.scores);
  choice.index = carve(base, used, rows * mixture->chosen, sizeof *choice.index);
  choice.weights = carve(base, used, rows * mixture->chosen, sizeof *choice.weights);
  choice.rest = base == NULL ? NULL : base + *used;
  return choice;
}

static struct experts_call call_of(const struct mixture *mixture, float *rows, size_t count,
                                   const struct choice *choice)
{
  return (struct experts_call){.input = rows,
                               .output = rows,
                               .rows = count,
                               .index = choice->index,
                               .weights = choice->weights,
                               .chosen = mixture->chosen};
}

size_t mixture_room(const struct mixture *mixture, size_t rows)
{
  size_t used = 0;
  const struct choice choice = divide(mixture, rows, NULL, &used);
  const struct experts_call call = call_of(mixture, NULL, rows, &choice);
  return used + experts_room(&mixture->experts, &call);
}

static float score(const struct mixture *mixture, const float *row, size_t expert)
{
  const size_t hidden = mixture->experts.hidden, start = expert * hidden;
  vec sum = vec_zero();
  for (size_t i = 0; i < hidden; i += LANES) {
    const vec_mask some = lanes((long)(hidden - i));
    sum = vec_fma(vec_load_some(row + i, some), load_floats(mixture->router, start + i, some, mixture->bf16),
                  sum);
  }
  return vec_sum(sum);
}

/* The experts with the highest scores, and their shares of softmax. The scores of those are lost. Where one
 * is NaN, so are all shares. */
static void choose(const struct mixture *mixture, float *scores, int64_t *index, float *weights)
{
  const size_t count = mixture->experts.count;
  float highest = scores[0], whole = 0, of_chosen = 0;
  for (size_t e = 1; e < count; e++)
    highest = fmaxf(highest, scores[e]);
  for (size_t e = 0; e < count; e++)
    whole += scores[e] = expf(scores[e] - highest);
  for (size_t c = 0; c < mixture->chosen; c++) {
    size_t best = 0;
    for (size_t e = 1; e < count; e++)
      if (scores[e] > scores[best])
        best = e;
    index[c] = (int64_t)best;
    weights[c] = scores[best];
    of_chosen += scores[best];
    scores[best] = -1;
  }
  for (size_t c = 0; c < mixture->chosen; c++)
    weights[c] /= mixture->normalised && whole == whole ? of_chosen : whole;
}

void mixture_run(const struct mixture *mixture, float *rows, size_t count, char *memory,
                 const struct member *self)
{
  const size_t experts = mixture->experts.count, hidden = mixture->experts.hidden;
  size_t used = 0, begin, end;
  const struct choice choice = divide(mixture, count, memory, &used);
  team_share(self, count * experts, &begin, &end);
  for (size_t i = begin; i < end; i++)
    choice.scores[i] = score(mixture, rows + i / experts * hidden, i % experts);
  team_wait(self);
  team_share(self, count, &begin, &end);
  for (size_t row = begin; row < end; row++)
    choose(mixture, choice.scores + row * experts, choice.index + row * mixture->chosen,
           choice.weights + row * mixture->chosen);
  team_wait(self);
  const struct experts_call call = call_of(mixture, rows, count, &choice);
  if (self->rank == 0)
    experts_begin(&mixture->experts, &call, choice.rest);
  team_wait(self);
  experts_share((struct job *)choice.rest, self);
}
