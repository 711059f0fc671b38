/* What stands before the layers: rows of tables, added and normed in one pass over the result. */
#pragma once
#include "rows.h"

/* One summand: row i of the result takes row ids[i % count] of the table. */
struct lookup {
  const float *table; /* [table_rows][columns] */
  size_t table_rows;
  const int64_t *ids; /* 0 to table_rows - 1 */
  size_t count;       /* above 0 */
};

/* output[i] = norm(sum over the lookups, in their order). EDOM, and no output, where an id is of no row of
 * its table; 0 otherwise. */
int embed_run(const struct lookup *lookups, size_t lookup_count, const struct norm *norm, size_t columns,
              float *output, size_t rows, unsigned threads);
