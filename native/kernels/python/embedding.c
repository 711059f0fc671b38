/* Embeddings and their ids. */
#include "embed.h"

#include <errno.h>

#include "seam.h"

/* Embedding(columns, norm, ((table, rows), ...)); tables are addresses */
int read_embedding(PyObject *args, void *content)
{
  struct embedding *embedding = content;
  PyObject *tables;
  if (!PyArg_ParseTuple(args, "O&O&O!", to_size, &embedding->columns, to_norm, &embedding->norm,
                        &PyTuple_Type, &tables))
    return 0;
  embedding->count = (size_t)PyTuple_Size(tables);
  if (embedding->columns == 0 || embedding->count < 1 || embedding->count > MOST_TABLES) {
    PyErr_Format(PyExc_ValueError, "columns above 0 and 1 to %d tables must hold, but got %zu and %zu",
                 MOST_TABLES, embedding->columns, embedding->count);
    return 0;
  }
  for (size_t i = 0; i < embedding->count; i++) {
    struct table *table = embedding->tables + i;
    if (!PyArg_Parse(PyTuple_GetItem(tables, (Py_ssize_t)i), "(O&O&)", to_address, &table->numbers, to_size,
                     &table->rows) ||
        !must_hold(table->numbers != NULL && table->rows > 0, "addresses that are not 0 and rows above 0"))
      return 0;
  }
  return 1;
}

/* Ids of a tuple of (numbers, count), one for each table; 0 with an exception. */
static int take_ids(PyObject *tuple, const struct embedding *embedding, struct ids *ids)
{
  if (!must_hold((size_t)PyTuple_Size(tuple) == embedding->count, "ids for each table"))
    return 0;
  for (size_t i = 0; i < embedding->count; i++)
    if (!PyArg_Parse(PyTuple_GetItem(tuple, (Py_ssize_t)i), "(O&O&)", to_address, &ids[i].numbers, to_size,
                     &ids[i].count) ||
        !must_hold(ids[i].numbers != NULL && ids[i].count > 0, "addresses that are not 0 and counts above 0"))
      return 0;
  return 1;
}

/* embed(threads, embedding, ids, output, rows) -> whether every id is a row of its table; if not, nothing is
 * written */
PyObject *embed(PyObject *module, PyObject *args)
{
  unsigned threads;
  PyObject *object, *tuple;
  float *output;
  size_t rows;
  if (!PyArg_ParseTuple(args, "O&OO!O&O&", to_threads, &threads, &object, &PyTuple_Type, &tuple, to_address,
                        &output, to_size, &rows))
    return NULL;
  const struct embedding *embedding = content_of(object, EMBEDDING);
  struct ids ids[MOST_TABLES];
  if (embedding == NULL || !take_ids(tuple, embedding, ids) ||
      !must_hold(rows == 0 || output != NULL, "an address that is not 0"))
    return NULL;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = embed_run(embedding, ids, output, rows, threads);
  Py_END_ALLOW_THREADS;
  return PyBool_FromLong(error != EDOM);
}

/* count(address, size, value) -> how many of these 64-bit integers are `value` */
PyObject *count(PyObject *module, PyObject *args)
{
  const int64_t *numbers;
  size_t size, found = 0;
  long long value;
  if (!PyArg_ParseTuple(args, "O&O&L", to_address, &numbers, to_size, &size, &value) ||
      !must_hold(size == 0 || numbers != NULL, "an address that is not 0"))
    return NULL;
  for (size_t i = 0; i < size; i++)
    found += numbers[i] == value;
  return PyLong_FromSize_t(found);
}
