/* A layer's feed-forward that is a mixture: a router chooses experts for each token. */
#pragma once
#include "experts.h"
#include "router.h"

struct mixture {
  struct experts experts; /* count is 0 where there is no mixture */
  struct router router;
  /* [hidden]: the sigmoid of its product with a token's row is the factor of what the expert that all tokens
   * share gives for that; NULL: 1 (layer.c computes it) */
  const float *shared_gate;
};

static inline int is_mixture(const struct mixture *mixture)
{
  return mixture->experts.count > 0;
}

/* Bytes for so many rows. */
size_t mixture_room(const struct mixture *mixture, size_t rows);

/* What the experts give for rows of floats, in their place. All threads of a group call it, and wait for each
 * other within, and not at the end. */
void mixture_run(const struct mixture *mixture, float *rows, size_t count, char *memory,
                 const struct member *self);
