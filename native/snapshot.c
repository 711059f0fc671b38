/* hfaccel._snapshot: whether many things are still as they were. A model's layers ask it at every call, where
 * a layer may take 50 microseconds: a statement of Python for each thing would be seen.
 * hfaccel/engine/snapshot.py says the same in Python. */
#include <Python.h>

/* Tuples of one length in all arguments; returns that length, or -1 with an exception. */
static Py_ssize_t common_length(PyObject *const *arguments, Py_ssize_t given, Py_ssize_t wanted)
{
  if (given != wanted) {
    PyErr_Format(PyExc_TypeError, "%zd tuples must be given, but got %zd arguments", wanted, given);
    return -1;
  }
  for (Py_ssize_t i = 0; i < given; i++) {
    if (!PyTuple_Check(arguments[i]) || PyTuple_Size(arguments[i]) != PyTuple_Size(arguments[0])) {
      PyErr_SetString(PyExc_TypeError, "all arguments must be tuples of one length");
      return -1;
    }
  }
  return PyTuple_Size(arguments[0]);
}

static int check_dict(PyObject *object)
{
  if (PyDict_Check(object))
    return 0;
  PyErr_SetString(PyExc_TypeError, "tables must be dicts");
  return -1;
}

static int is_item(PyObject *table, PyObject *name, PyObject *value)
{
  if (check_dict(table) < 0)
    return -1;
  PyObject *found = PyDict_GetItemWithError(table, name);
  if (found == NULL && PyErr_Occurred())
    return -1;
  return (found == NULL ? Py_None : found) == value;
}

static int is_attribute(PyObject *owner, PyObject *name, PyObject *value)
{
  PyObject *found = PyObject_GetAttr(owner, name);
  if (found == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
      return -1;
    PyErr_Clear();
    return value == Py_None;
  }
  const int same = found == value;
  Py_DECREF(found);
  return same;
}

static int has_type(PyObject *object, PyObject *type)
{
  return (PyObject *)Py_TYPE(object) == type;
}

static int has_size(PyObject *table, PyObject *size)
{
  if (check_dict(table) < 0)
    return -1;
  const Py_ssize_t wanted = PyLong_AsSsize_t(size);
  if (wanted == -1 && PyErr_Occurred())
    return -1;
  return PyDict_Size(table) == wanted;
}

/* What the comparison of a row gave (1: as it was), until one is not 1. */
static PyObject *to_bool(int same)
{
  return same < 0 ? NULL : PyBool_FromLong(same);
}

static PyObject *compare_three(PyObject *const *arguments, Py_ssize_t given,
                               int (*compare)(PyObject *, PyObject *, PyObject *))
{
  const Py_ssize_t length = common_length(arguments, given, 3);
  int same = length < 0 ? -1 : 1;
  for (Py_ssize_t i = 0; i < length && same == 1; i++)
    same = compare(PyTuple_GetItem(arguments[0], i), PyTuple_GetItem(arguments[1], i),
                   PyTuple_GetItem(arguments[2], i));
  return to_bool(same);
}

static PyObject *compare_two(PyObject *const *arguments, Py_ssize_t given,
                             int (*compare)(PyObject *, PyObject *))
{
  const Py_ssize_t length = common_length(arguments, given, 2);
  int same = length < 0 ? -1 : 1;
  for (Py_ssize_t i = 0; i < length && same == 1; i++)
    same = compare(PyTuple_GetItem(arguments[0], i), PyTuple_GetItem(arguments[1], i));
  return to_bool(same);
}

static PyObject *items_are_py(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
  (void)module;
  return compare_three(arguments, given, is_item);
}

static PyObject *attributes_are_py(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
  (void)module;
  return compare_three(arguments, given, is_attribute);
}

static PyObject *types_are_py(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
  (void)module;
  return compare_two(arguments, given, has_type);
}

static PyObject *sizes_are_py(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
  (void)module;
  return compare_two(arguments, given, has_size);
}

/* By way of void (*)(void), which may be cast to any function: a method's type says nothing of its arguments.
 */
#define METHOD(function) (PyCFunction)(void (*)(void)) function

static PyMethodDef functions[] = {
    {"items_are", METHOD(items_are_py), METH_FASTCALL,
     "items_are(tables, names, values): whether each dict has this very value under this name (None: or "
     "nothing)."},
    {"attributes_are", METHOD(attributes_are_py), METH_FASTCALL,
     "attributes_are(owners, names, values): the same of attributes."},
    {"types_are", METHOD(types_are_py), METH_FASTCALL, "types_are(objects, types)."},
    {"sizes_are", METHOD(sizes_are_py), METH_FASTCALL, "sizes_are(tables, sizes): of dicts."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{0, NULL}};

static struct PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "hfaccel._snapshot",
    .m_doc = "Whether many things are still as they were.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__snapshot(void)
{
  return PyModuleDef_Init(&module_definition);
}
