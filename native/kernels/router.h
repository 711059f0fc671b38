/* Which experts of a mixture a token goes through, and what the result of each counts. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* A token's experts are those with the highest scores, within the groups with the highest. */
struct router {
  const void *weight;           /* [experts][hidden] of float32 or bfloat16 */
  int bf16;                     /* whether it is bfloat16 */
  const float *bias;            /* [experts]: added to the products with that, or NULL (GPT-OSS) */
  const float *correction;      /* [experts]: added to scores for the choice alone, or NULL (DeepSeek-V3) */
  int sigmoid;                  /* scores are sigmoids of the products, not shares of softmax */
  size_t chosen;                /* experts of a token */
  size_t groups, chosen_groups; /* of experts that lie next to each other; 1: all are one */
  size_t counted;               /* a group's score: the sum of so many of its highest, 1 or 2 */
  int normalised;               /* whether a token's scores are divided by their sum */
  float least;                  /* which then counts at least so much */
  float scale;                  /* of the scores, at the end */
};

/* The product of a token's row with one expert's weights, with its bias. */
float router_product(const struct router *router, size_t hidden, const float *row, size_t expert);

/* Numbers that router_choose is given for one token: the products of all experts come first. */
static inline size_t router_numbers(const struct router *router, size_t experts)
{
  return 2 * experts + router->groups;
}

/* The experts of one token and their weights. Where a product is NaN, so are all weights. `experts`: a
 * multiple of the groups; those of the chosen groups are `chosen` or more. */
void router_choose(const struct router *router, size_t experts, float *numbers, int64_t *index,
                   float *weights);
