#include "linear.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"
#include "scratch.h"
#include "team.h"

enum { BLOCK_TILES = 6 };
enum { GROUPED_BLOCK = HAS_AMX ? 128 : 96 }; /* rows: their tiles are low, and each block reads the weight */

size_t linear_block(const struct matrix *matrix)
{
  return is_grouped(matrix->kind) ? GROUPED_BLOCK : BLOCK_TILES * tile_rows(matrix->kind);
}

struct job {
  const struct matrix *matrix;
  enum activation activation;
  const char *input;
  char *output;
  int bf16;
  size_t rows;
  uint32_t *words; /* [rows][room]: the converted input; NULL if the input needs no conversion */
  float *scales, *shifts;
  struct barrier *barriers;
  atomic_size_t next;
};

static void run(void *context, const struct member *member)
{
  struct job *job = context;
  const struct matrix *matrix = job->matrix;
  const struct crew crew = team_crew(member, job->rows, crew_rows(matrix), job->barriers);
  const size_t room = operand_room(matrix), bytes = number_bytes(job->bf16);
  struct blocks blocks = crew_blocks(&crew, job->rows, linear_block(matrix), &job->next);
  size_t first, last, begin, end;
  while (crew_next(&blocks, &first, &last)) {
    const char *input = job->input + first * matrix->inputs * bytes;
    struct operand operand = {.words = (uint32_t *)input, .stride = matrix->inputs}; /* only read */
    if (job->words != NULL) {
      operand = operand_of(matrix, last - first, job->words + first * room, job->scales + first,
                           job->shifts + first);
      team_share(&crew.self, last - first, &begin, &end);
      for (size_t row = begin; row < end; row++)
        fill_row(matrix, &operand, row, input + row * matrix->inputs * bytes, job->bf16, matrix->inputs);
      team_wait(&crew.self);
    }
    const struct result result = {.rows = job->output + first * matrix->columns * bytes,
                                  .stride = matrix->columns,
                                  .bf16 = job->bf16,
                                  .activation = job->activation};
    team_share(&crew.self, matrix_panels(matrix), &begin, &end);
    gemm(matrix, &operand, last - first, begin, end, &result);
  }
}

int linear_run(const struct matrix *matrix, enum activation activation, const void *input, void *output,
               int bf16, size_t rows, unsigned threads)
{
  const size_t in_features = matrix->inputs;
  threads = team_size(threads, (double)rows * (double)matrix->columns * (double)in_features);
  struct job job = {matrix, activation, input, output, bf16, rows, NULL, NULL, NULL, NULL, 0};
  const size_t room = operand_room(matrix);
  /* float32 is multiplied in place, unless it is split, its rows fall on the same sets of the cache, or a row
   * ends inside a word of the weight */
  const int in_place = !bf16 && operand_is_f32(matrix->kind) && !is_split(matrix, rows) &&
                       in_features % 512 != 0 && in_features == operand_words(matrix);
  const size_t words = in_place ? 0 : rows * (room + 2);
  const size_t barriers = threads * sizeof *job.barriers;
  char *memory = scratch_allocate(64, (barriers + words * sizeof(uint32_t) + 63) / 64 * 64);
  if (memory == NULL)
    return ENOMEM;
  job.barriers = (struct barrier *)memory;
  memset(memory, 0, barriers);
  if (words > 0) {
    job.words = (uint32_t *)(memory + barriers);
    job.scales = (float *)(job.words + rows * room);
    job.shifts = job.scales + rows;
  }
  team_run(threads, run, &job);
  free(memory);
  return 0;
}
