/* The memory policy of the calling thread. */
#include "../policy.h"

#include "seam.h"

static const char *const names[] = {"default", "preferred", "bind", "interleave"}; /* enum policy_mode */
enum { NAMES = sizeof names / sizeof *names };

/* set_memory_policy(mode, nodes) -> None: where new pages come from */
PyObject *set_memory_policy(PyObject *module, PyObject *args)
{
  const char *name;
  PyObject *nodes;
  if (!PyArg_ParseTuple(args, "sO!", &name, &PyTuple_Type, &nodes))
    return NULL;
  const int mode = find(name, names, NAMES);
  if (mode < 0)
    return PyErr_Format(PyExc_ValueError, "mode must be default, preferred, bind or interleave, but got '%s'",
                        name);
  struct policy policy = {.mode = (enum policy_mode)mode};
  for (Py_ssize_t i = 0; i < PyTuple_Size(nodes); i++) {
    size_t node;
    if (!to_count(PyTuple_GetItem(nodes, i), "node", &node))
      return NULL;
    if (policy_add_node(&policy, node) != 0)
      return PyErr_Format(PyExc_ValueError, "`node < %d` must hold, but got %zu", POLICY_MAX_NODES, node);
  }
  return none_or_error(policy_set(&policy), "set_mempolicy");
}

/* memory_policy() -> (mode, nodes) */
PyObject *memory_policy(PyObject *module, PyObject *unused)
{
  struct policy policy;
  const int error = policy_get(&policy);
  if (error != 0)
    return call_error(error, "get_mempolicy");
  PyObject *nodes = PyList_New(0);
  for (size_t node = 0; nodes != NULL && node < POLICY_MAX_NODES; node++)
    if (policy_has_node(&policy, node))
      append(&nodes, PyLong_FromSize_t(node));
  PyObject *tuple = to_tuple(nodes);
  const char *name = (int)policy.mode < NAMES ? names[policy.mode] : "other";
  return tuple == NULL ? NULL : Py_BuildValue("(sN)", name, tuple);
}
