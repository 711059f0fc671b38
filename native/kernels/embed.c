#include "embed.h"

#include <errno.h>

#include "team.h"

enum { WORK = 64 }; /* what one number of the result costs, in multiplications of a matrix */

struct job {
  const struct lookup *lookups;
  size_t lookup_count;
  const struct norm *norm;
  size_t columns;
  float *output;
  size_t rows;
};

static const float *found(const struct lookup *lookup, size_t row, size_t columns)
{
  return lookup->table + (size_t)lookup->ids[row % lookup->count] * columns;
}

/* A table's rows lie anywhere: the next one is asked for while this one is added. */
static void prefetch(const float *row, size_t columns)
{
  for (size_t i = 0; i < columns; i += 16)
    PREFETCH(row + i, NEAR);
}

static void run(void *context, const struct member *member)
{
  const struct job *job = context;
  const size_t columns = job->columns;
  size_t begin, end;
  team_share(member, job->rows, &begin, &end);
  for (size_t row = begin; row < end; row++) {
    float *out = job->output + row * columns;
    for (size_t l = 0; l < job->lookup_count; l++) {
      const float *x = found(job->lookups + l, row, columns);
      if (row + 1 < end)
        prefetch(found(job->lookups + l, row + 1, columns), columns);
      for (size_t i = 0; i < columns; i += LANES) {
        const vec_mask some = lanes((long)(columns - i));
        const vec sum = l == 0 ? vec_zero() : vec_load_some(out + i, some);
        vec_store_some(out + i, some, vec_add(sum, vec_load_some(x + i, some)));
      }
    }
    norm_row(job->norm, out, columns, out);
  }
}

static int is_inside(const struct lookup *lookup)
{
  for (size_t i = 0; i < lookup->count; i++)
    if ((uint64_t)lookup->ids[i] >= lookup->table_rows) /* below 0 is far above, unsigned */
      return 0;
  return 1;
}

int embed_run(const struct lookup *lookups, size_t lookup_count, const struct norm *norm, size_t columns,
              float *output, size_t rows, unsigned threads)
{
  for (size_t l = 0; l < lookup_count; l++)
    if (!is_inside(lookups + l))
      return EDOM;
  struct job job = {lookups, lookup_count, norm, columns, output, rows};
  team_run(team_size(threads, (double)rows * (double)columns * WORK), run, &job);
  return 0;
}
