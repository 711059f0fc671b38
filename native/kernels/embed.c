#include "embed.h"

#include <errno.h>

#include "team.h"

enum { WORK = 64 }; /* the cost of one number of the result, in multiplications of a matrix product */

struct job {
  const struct embedding *embedding;
  const struct ids *ids;
  float *output;
  size_t rows;
};

/* The row of table t that row `row` of the result adds. */
static const float *found(const struct job *job, size_t t, size_t row)
{
  const struct ids *ids = job->ids + t;
  return job->embedding->tables[t].numbers + (size_t)ids->numbers[row % ids->count] * job->embedding->columns;
}

/* A table's rows lie anywhere in memory: the next one is prefetched while this one is added. */
static void prefetch(const float *row, size_t columns)
{
  for (size_t i = 0; i < columns; i += 16)
    PREFETCH(row + i, NEAR);
}

static void run(void *context, const struct member *member)
{
  const struct job *job = context;
  const size_t columns = job->embedding->columns;
  size_t begin, end;
  team_share(member, job->rows, &begin, &end);
  for (size_t row = begin; row < end; row++) {
    float *out = job->output + row * columns;
    for (size_t t = 0; t < job->embedding->count; t++) {
      const float *x = found(job, t, row);
      if (row + 1 < end)
        prefetch(found(job, t, row + 1), columns);
      for (size_t i = 0; i < columns; i += LANES) {
        const vec_mask some = lanes((long)(columns - i));
        const vec sum = t == 0 ? vec_zero() : vec_load_some(out + i, some);
        vec_store_some(out + i, some, vec_add(sum, vec_load_some(x + i, some)));
      }
    }
    norm_row(&job->embedding->norm, out, columns, out);
  }
}

static int is_inside(const struct ids *ids, const struct table *table)
{
  for (size_t i = 0; i < ids->count; i++)
    if ((uint64_t)ids->numbers[i] >= table->rows) /* a negative id becomes a huge one */
      return 0;
  return 1;
}

int embed_run(const struct embedding *embedding, const struct ids *ids, float *output, size_t rows,
              unsigned threads)
{
  for (size_t t = 0; t < embedding->count; t++)
    if (!is_inside(ids + t, embedding->tables + t))
      return EDOM;
  struct job job = {embedding, ids, output, rows};
  team_run(team_size(threads, (double)rows * (double)embedding->columns * WORK), run, &job);
  return 0;
}
