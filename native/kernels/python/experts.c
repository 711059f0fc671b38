/* Mixtures of experts. */
#include "experts.h"

#include <errno.h>

#include "seam.h"

static int fit_together(const struct experts *experts)
{
  const struct matrix *gate = &experts->gate, *up = &experts->up, *down = &experts->down;
  return down->inputs == up->columns && down->columns == up->inputs &&
         (!experts->gated ||
          (gate->kind == up->kind && gate->columns == up->columns && gate->inputs == up->inputs));
}

/* Experts(count, (gate, up, down), (up_step, down_step), activation, (limit, slope, shift),
 * ((up_bias, bf16), (down_bias, bf16)), alternate); matrices of the first expert, gate may be None; steps are
 * bytes, biases are addresses, 0 for none; a limit of 0 is none */
int read_experts(PyObject *args, void *content)
{
  struct experts *experts = content;
  struct expert_bias *up = &experts->up_bias, *down = &experts->down_bias;
  if (!PyArg_ParseTuple(args, "O&(O&O&O&)(O&O&)O&(fff)((O&p)(O&p))p", to_size, &experts->count,
                        to_matrix_or_none, &experts->gate, to_matrix, &experts->up, to_matrix, &experts->down,
                        to_size, &experts->up_step, to_size, &experts->down_step, to_activation,
                        &experts->activation, &experts->limit, &experts->slope, &experts->shift, to_address,
                        &up->numbers, &up->bf16, to_address, &down->numbers, &down->bf16,
                        &experts->alternate))
    return 0;
  experts->gated = experts->gate.panels != NULL;
  experts->hidden = experts->up.inputs;
  experts->inner = experts->up.columns;
  return must_hold(experts->count > 0, "one expert or more") &&
         must_hold(fit_together(experts), "matrices of which one multiplies what the other gives") &&
         must_hold((up->numbers == NULL) == (down->numbers == NULL), "both biases or none") &&
         must_hold(experts->gated || (!(experts->limit > 0) && !experts->alternate), "a gate for its limit");
}

/* experts(threads, experts, (input, output, rows, bf16), (index, weights, chosen, bf16)) -> whether every
 * index is one of an expert; if not, nothing is written */
PyObject *experts(PyObject *module, PyObject *args)
{
  unsigned threads;
  PyObject *object;
  struct experts_call call;
  if (!PyArg_ParseTuple(args, "O&O(O&O&O&p)(O&O&O&p)", to_threads, &threads, &object, to_address, &call.input,
                        to_address, &call.output, to_size, &call.rows, &call.bf16, to_address, &call.index,
                        to_address, &call.weights, to_size, &call.chosen, &call.weights_bf16))
    return NULL;
  const struct experts *content = content_of(object, EXPERTS);
  if (content == NULL ||
      !must_hold(call.rows == 0 || (call.input != NULL && call.output != NULL && call.index != NULL &&
                                    call.weights != NULL && call.chosen > 0),
                 "addresses that are not 0 and an expert for each row"))
    return NULL;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = experts_run(content, &call, threads);
  Py_END_ALLOW_THREADS;
  return error == EDOM ? PyBool_FromLong(0) : error ? done(error) : PyBool_FromLong(1);
}
