/* Packed weights and norms, and a linear layer on its own. */
#include "linear.h"
#include "seam.h"

/* Matrix(kind, columns, inputs, panels, bias, (scales, sums, factors, exact, exact_inputs)); the last five
 * for int8 only */
int read_matrix(PyObject *args, void *content)
{
  struct matrix *matrix = content;
  int kind;
  if (!PyArg_ParseTuple(args, "iO&O&O&O&|(O&O&O&O&O&)", &kind, to_size, &matrix->columns, to_size,
                        &matrix->inputs, to_address, &matrix->panels, to_address, &matrix->bias, to_address,
                        &matrix->scales, to_address, &matrix->sums, to_address, &matrix->factors, to_address,
                        &matrix->exact, to_address, &matrix->exact_inputs))
    return 0;
  if (kind < 0 || kind >= KINDS || matrix->columns == 0 || matrix->inputs == 0) {
    PyErr_Format(PyExc_ValueError, "`0 <= kind < %d` and sizes above 0 must hold, but got (%d, %zu, %zu)",
                 KINDS, kind, matrix->columns, matrix->inputs);
    return 0;
  }
  matrix->kind = (enum kind)kind;
  matrix->words = kind_words(matrix->kind, matrix->inputs);
  return must_hold(matrix->panels != NULL &&
                       (kind != KIND_I8 ||
                        (matrix->scales != NULL && matrix->sums != NULL && matrix->factors != NULL)),
                   "addresses of panels, and for int8 of scales, sums and factors, that are not 0") &&
         must_hold((matrix->exact == NULL) == (matrix->exact_inputs == NULL),
                   "exact and exact_inputs together") &&
         must_hold(kind == KIND_I8 || matrix->exact == NULL, "exact inputs for int8 alone");
}

/* Norm(weight, bias, epsilon, kind); the first two are addresses, 0 for none */
int read_norm(PyObject *args, void *content)
{
  struct norm *norm = content;
  int kind;
  if (!PyArg_ParseTuple(args, "O&O&fi", to_address, &norm->weight, to_address, &norm->bias, &norm->epsilon,
                        &kind))
    return 0;
  if (kind < 0 || kind >= NORMS)
    PyErr_Format(PyExc_ValueError, "`0 <= kind < %d` must hold for a norm, but got %d", NORMS, kind);
  norm->kind = (enum norm_kind)kind;
  return !PyErr_Occurred();
}

/* linear(threads, matrix, activation, input, output, rows[, bf16]) -> None; bf16: of input and output */
PyObject *linear(PyObject *module, PyObject *args)
{
  unsigned threads;
  struct matrix matrix;
  enum activation activation;
  const void *input;
  void *output;
  size_t rows;
  int bf16 = 0;
  if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&|p", to_threads, &threads, to_matrix, &matrix, to_activation,
                        &activation, to_address, &input, to_address, &output, to_size, &rows, &bf16) ||
      !must_hold(rows == 0 || (input != NULL && output != NULL), "addresses that are not 0"))
    return NULL;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = linear_run(&matrix, activation, input, output, bf16, rows, threads);
  Py_END_ALLOW_THREADS;
  return done(error);
}
