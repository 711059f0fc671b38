#include "router.h"

#include <math.h>

#include "vector.h"

float router_product(const struct router *router, size_t hidden, const float *row, size_t expert)
{
  const size_t start = expert * hidden;
  vec sum = vec_zero();
  for (size_t i = 0; i < hidden; i += LANES) {
    const vec_mask some = lanes((long)(hidden - i));
    sum = vec_fma(vec_load_some(row + i, some), load_floats(router->weight, start + i, some, router->bf16),
                  sum);
  }
  return vec_sum(sum) + (router->bias == NULL ? 0 : router->bias[expert]);
}

/* Products become scores, which with softmax are multiples of its shares: of what is returned, which is NaN
 * where a product is. */
static float score(const struct router *router, size_t experts, float *products)
{
  float highest = products[0], whole = 0;
  for (size_t e = 1; e < experts; e++)
    highest = fmaxf(highest, products[e]);
  for (size_t e = 0; e < experts; e++)
    whole += products[e] = router->sigmoid ? 1 / (1 + expf(-products[e])) : expf(products[e] - highest);
  return router->sigmoid && whole == whole ? 1 : whole;
}

/* What experts are chosen by. */
static void rank(const struct router *router, size_t experts, const float *scores, float whole, float *ranks)
{
  for (size_t e = 0; e < experts; e++)
    ranks[e] = router->correction == NULL ? scores[e] : scores[e] / whole + router->correction[e];
}

static float group_rank(const struct router *router, size_t size, const float *ranks)
{
  float highest = -INFINITY, second = -INFINITY;
  for (size_t e = 0; e < size; e++) {
    second = fmaxf(second, fminf(highest, ranks[e]));
    highest = fmaxf(highest, ranks[e]);
  }
  return router->counted > 1 ? highest + second : highest;
}

/* Experts whose group is not among the chosen cannot be chosen either. */
static void close_groups(const struct router *router, size_t experts, float *ranks, float *of_groups)
{
  const size_t groups = router->groups, size = experts / groups;
  for (size_t g = 0; g < groups; g++)
    of_groups[g] = group_rank(router, size, ranks + g * size);
  for (size_t g = 0; g < groups; g++) {
    size_t before = 0;
    for (size_t other = 0; other < groups; other++)
      before += of_groups[other] > of_groups[g] || (of_groups[other] == of_groups[g] && other < g);
    for (size_t e = g * size; before >= router->chosen_groups && e < (g + 1) * size; e++)
      ranks[e] = -INFINITY;
  }
}

static size_t take_highest(size_t experts, float *ranks)
{
  size_t best = 0;
  for (size_t e = 1; e < experts; e++)
    if (ranks[e] > ranks[best])
      best = e;
  ranks[best] = -INFINITY;
  return best;
}

void router_choose(const struct router *router, size_t experts, float *numbers, int64_t *index,
                   float *weights)
{
  float *scores = numbers, *ranks = scores + experts, *of_groups = ranks + experts, sum = 0;
  const float whole = score(router, experts, scores);
  rank(router, experts, scores, whole, ranks);
  if (router->groups > 1)
    close_groups(router, experts, ranks, of_groups);
  for (size_t c = 0; c < router->chosen; c++) {
    const size_t best = take_highest(experts, ranks);
    index[c] = (int64_t)best;
    sum += weights[c] = scores[best];
  }
  const int normalises = router->normalised && whole == whole;
  const float divisor = normalises ? fmaxf(sum, router->least * whole) : whole;
  for (size_t c = 0; c < router->chosen; c++)
    weights[c] = weights[c] / divisor * router->scale;
}
