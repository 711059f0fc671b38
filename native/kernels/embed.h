/* Embeddings before the layers: rows of tables are added and normalised in one pass over the result. */
#pragma once
#include "rows.h"

enum { MOST_TABLES = 8 };

struct table {
  const float *numbers; /* [rows][columns] */
  size_t rows;
};

struct embedding {
  struct table tables[MOST_TABLES];
  size_t count, columns; /* tables; numbers in a row, the same for all tables */
  struct norm norm;
};

/* The ids for one table: row i of the result adds row numbers[i % count]. */
struct ids {
  const int64_t *numbers; /* 0 to table.rows - 1 */
  size_t count;           /* above 0 */
};

/* output[i] = norm(sum over the tables, in their order). EDOM, and no output, if an id is outside of its
 * table; 0 otherwise. */
int embed_run(const struct embedding *embedding, const struct ids *ids, float *output, size_t rows,
              unsigned threads);
