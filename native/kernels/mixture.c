#include "mixture.h"

#include "scratch.h"

/* What lies in the memory of a call. */
struct choice {
  float *numbers; /* [rows][router_numbers] */
  int64_t *index; /* [rows][chosen] */
  float *weights; /* the same */
  char *rest;
};

static struct choice divide(const struct mixture *mixture, size_t rows, char *base, size_t *used)
{
  struct choice choice = {NULL};
  const size_t numbers = router_numbers(&mixture->router, mixture->experts.count);
  choice.numbers = carve(base, used, rows * numbers, sizeof *choice.numbers);
  choice.index = carve(base, used, rows * mixture->router.chosen, sizeof *choice.index);
  choice.weights = carve(base, used, rows * mixture->router.chosen, sizeof *choice.weights);
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
                               .chosen = mixture->router.chosen};
}

size_t mixture_room(const struct mixture *mixture, size_t rows)
{
  size_t used = 0;
  const struct choice choice = divide(mixture, rows, NULL, &used);
  const struct experts_call call = call_of(mixture, NULL, rows, &choice);
  return used + experts_room(&mixture->experts, &call);
}

void mixture_run(const struct mixture *mixture, float *rows, size_t count, char *memory,
                 const struct member *self)
{
  const struct router *router = &mixture->router;
  const size_t experts = mixture->experts.count, hidden = mixture->experts.hidden, chosen = router->chosen;
  const size_t numbers = router_numbers(router, experts);
  size_t used = 0, begin, end;
  const struct choice choice = divide(mixture, count, memory, &used);
  team_share(self, count * experts, &begin, &end);
  for (size_t i = begin; i < end; i++)
    choice.numbers[i / experts * numbers + i % experts] =
        router_product(router, hidden, rows + i / experts * hidden, i % experts);
  team_wait(self);
  team_share(self, count, &begin, &end);
  for (size_t row = begin; row < end; row++)
    router_choose(router, experts, choice.numbers + row * numbers, choice.index + row * chosen,
                  choice.weights + row * chosen);
  team_wait(self);
  const struct experts_call call = call_of(mixture, rows, count, &choice);
  if (self->rank == 0)
    experts_begin(&mixture->experts, &call, choice.rest);
  team_wait(self);
  experts_share((struct job *)choice.rest, self);
}
