#include "linear.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"
#include "scratch.h"

enum { BLOCK_TILES = 6 };
enum { GROUPED_BLOCK = HAS_AMX ? 128 : 96 }; /* rows: their tiles are low, and each block reads the weight */

size_t linear_block(const struct matrix *matrix)
{
  return is_grouped(matrix->kind) ? GROUPED_BLOCK : BLOCK_TILES * tile_rows(matrix->kind);
}

void product_share(void *context, const struct member *member)
{
  struct product *product = context;
  const struct matrix *matrix = product->matrix;
  const struct crew crew = team_crew(member, product->rows, crew_rows(matrix), product->barriers);
  const size_t room = operand_room(matrix);
  const size_t read = number_bytes(product->of_bf16), written = number_bytes(product->to_bf16);
  struct blocks blocks = crew_blocks(&crew, product->rows, linear_block(matrix), &product->next);
  size_t first, last, begin, end;
  while (crew_next(&blocks, &first, &last)) {
    const char *input = product->input + first * matrix->inputs * read;
    struct operand operand = {.words = (uint32_t *)input, .stride = matrix->inputs}; /* only read */
    if (product->words != NULL) {
      operand = operand_of(matrix, last - first, product->words + first * room, product->scales + first,
                           product->shifts + first);
      team_share(&crew.self, last - first, &begin, &end);
      for (size_t row = begin; row < end; row++)
        fill_row(matrix, &operand, row, input + row * matrix->inputs * read, product->of_bf16,
                 matrix->inputs);
      team_wait(&crew.self);
    }
    const struct result result = {.rows = product->output + first * matrix->columns * written,
                                  .stride = matrix->columns,
                                  .bf16 = product->to_bf16,
                                  .activation = product->activation};
    team_share(&crew.self, matrix_panels(matrix), &begin, &end);
    gemm(matrix, &operand, last - first, begin, end, &result);
  }
}

int product_begin(struct product *product, unsigned threads)
{
  const struct matrix *matrix = product->matrix;
  const size_t rows = product->rows, room = operand_room(matrix);
  /* float32 is multiplied in place, unless it is split, its rows fall on the same sets of the cache, or a row
   * ends inside a word of the weight */
  const int in_place = !product->of_bf16 && operand_is_f32(matrix->kind) && !is_split(matrix, rows) &&
                       matrix->inputs % 512 != 0 && matrix->inputs == operand_words(matrix);
  const size_t words = in_place ? 0 : rows * (room + 2);
  const size_t barriers = threads * sizeof *product->barriers;
  char *memory = scratch_allocate(64, (barriers + words * sizeof(uint32_t) + 63) / 64 * 64);
  if (memory == NULL)
    return ENOMEM;
  product->memory = memory;
  product->barriers = (struct barrier *)memory;
  memset(memory, 0, barriers);
  if (words > 0) {
    product->words = (uint32_t *)(memory + barriers);
    product->scales = (float *)(product->words + rows * room);
    product->shifts = product->scales + rows;
  }
  return 0;
}

void product_end(struct product *product)
{
  free(product->memory);
}

int linear_run(const struct matrix *matrix, enum activation activation, const void *input, void *output,
               int bf16, size_t rows, unsigned threads)
{
  threads = team_size(threads, (double)rows * (double)matrix->columns * (double)matrix->inputs);
  struct product product = {.matrix = matrix,
                            .activation = activation,
                            .input = input,
                            .output = output,
                            .of_bf16 = bf16,
                            .to_bf16 = bf16,
                            .rows = rows};
  const int error = product_begin(&product, threads);
  if (error != 0)
    return error;
  team_run(threads, product_share, &product);
  product_end(&product);
  return 0;
}
