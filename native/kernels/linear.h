/* A linear layer on its own, or behind what the same threads have computed. */
#pragma once
#include "gemm.h"
#include "team.h"

/* output = activation(input weight^T + bias) of contiguous rows, computed by the members of a team. */
struct product {
  const struct matrix *matrix;
  enum activation activation;
  const char *input;
  char *output;
  int of_bf16, to_bf16; /* whether input and output are bfloat16, and not float32 */
  size_t rows;
  void *memory;
  uint32_t *words; /* [rows][room]: the converted input; NULL if the input needs no conversion */
  float *scales, *shifts;
  struct barrier *barriers;
  atomic_size_t next;
};

/* Allocates what at most `threads` members need. ENOMEM or 0. */
int product_begin(struct product *product, unsigned threads);

/* What each member does; `context`: a product whose input is complete. */
void product_share(void *context, const struct member *member);

void product_end(struct product *product);

/* output = activation(input weight^T + bias); rows are contiguous, of float32 or bfloat16. ENOMEM if there is
 * no memory for converted rows; 0 otherwise. */
int linear_run(const struct matrix *matrix, enum activation activation, const void *input, void *output,
               int bf16, size_t rows, unsigned threads);

/* Rows that are multiplied together: tiles of them share each panel while the cache has it. */
size_t linear_block(const struct matrix *matrix);
