/* hfaccel._snapshot: whether many objects are unchanged. A model's layers check this at every call, and a
 * layer may take only 50 microseconds, so one Python statement for each object would be noticeable.
 * hfaccel/engine/calls/snapshot.py does the same in Python. */
#include <Python.h>

/* Whether a row of the arguments is unchanged: 1, 0, or -1 with an exception. */
typedef int comparison(PyObject *const *row);

static int check_dict(PyObject *object)
{
  if (PyDict_Check(object))
    return 0;
  PyErr_SetString(PyExc_TypeError, "tables must be dicts");
  return -1;
}

/* table, name, value */
static int is_item(PyObject *const *row)
{
  if (check_dict(row[0]) < 0)
    return -1;
  PyObject *found = PyDict_GetItemWithError(row[0], row[1]);
  if (found == NULL && PyErr_Occurred())
    return -1;
  return (found == NULL ? Py_None : found) == row[2];
}

/* owner, name, value */
static int is_attribute(PyObject *const *row)
{
  PyObject *found = PyObject_GetAttr(row[0], row[1]);
  if (found == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
      return -1;
    PyErr_Clear();
    return row[2] == Py_None;
  }
  Py_DECREF(found);
  return found == row[2];
}

/* object, type */
static int has_type(PyObject *const *row)
{
  return (PyObject *)Py_TYPE(row[0]) == row[1];
}

/* table, size */
static int has_size(PyObject *const *row)
{
  if (check_dict(row[0]) < 0)
    return -1;
  const Py_ssize_t wanted = PyLong_AsSsize_t(row[1]);
  if (wanted == -1 && PyErr_Occurred())
    return -1;
  return PyDict_Size(row[0]) == wanted;
}

enum {
  MOST = 3,  /* arguments */
  AHEAD = 12 /* rows: the weights of a call evict these objects, and memory fetches several at once */
};

/* Hints for the processor. CPython 3.11 to 3.14 keep the address of a dict's entries in its fifth word; in
 * another layout the hint costs nothing and helps nobody. */
static void fetch_early(PyObject *tables, Py_ssize_t i, Py_ssize_t length)
{
  enum { LINE = 64, LINES = 3, ENTRIES = 4 };
  if (i + 2 * AHEAD < length)
    __builtin_prefetch(PyTuple_GetItem(tables, i + 2 * AHEAD));
  if (i + AHEAD >= length)
    return;
  PyObject *table = PyTuple_GetItem(tables, i + AHEAD);
  if (PyDict_CheckExact(table))
    for (int line = 0; line < LINES; line++)
      __builtin_prefetch(((const char *const *)table)[ENTRIES] + line * LINE);
}

/* Whether all rows of `wanted` tuples, which must have equal lengths, are unchanged. Always inlined, so that
 * the compiler knows the comparison. */
static inline __attribute__((always_inline)) PyObject *compare(PyObject *const *tuples, Py_ssize_t given,
                                                               Py_ssize_t wanted, comparison *is_same)
{
  if (given != wanted)
    return PyErr_Format(PyExc_TypeError, "%zd tuples must be given, but got %zd arguments", wanted, given);
  for (Py_ssize_t t = 0; t < wanted; t++)
    if (!PyTuple_Check(tuples[t]) || PyTuple_Size(tuples[t]) != PyTuple_Size(tuples[0]))
      return PyErr_Format(PyExc_TypeError, "all arguments must be tuples of one length");
  const Py_ssize_t length = PyTuple_Size(tuples[0]);
  int same = 1;
  for (Py_ssize_t i = 0; i < length && same == 1; i++) {
    PyObject *row[MOST];
    fetch_early(tuples[0], i, length);
    for (Py_ssize_t t = 0; t < wanted; t++)
      row[t] = PyTuple_GetItem(tuples[t], i);
    same = is_same(row);
  }
  return same < 0 ? NULL : PyBool_FromLong(same);
}

/* items_are(tables, names, values): whether each dict holds this object under this name (None: or nothing) */
static PyObject *items_are(PyObject *module, PyObject *const *tuples, Py_ssize_t given)
{
  return compare(tuples, given, 3, is_item);
}

/* attributes_are(owners, names, values): the same for attributes */
static PyObject *attributes_are(PyObject *module, PyObject *const *tuples, Py_ssize_t given)
{
  return compare(tuples, given, 3, is_attribute);
}

/* types_are(objects, types): whether each object is of exactly this type */
static PyObject *types_are(PyObject *module, PyObject *const *tuples, Py_ssize_t given)
{
  return compare(tuples, given, 2, has_type);
}

/* sizes_are(tables, sizes): whether each dict has this size */
static PyObject *sizes_are(PyObject *module, PyObject *const *tuples, Py_ssize_t given)
{
  return compare(tuples, given, 2, has_size);
}

/* Cast through void (*)(void), which may be cast to any function: PyMethodDef has one type for all methods.
 */
#define METHOD(function) {#function, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

static PyMethodDef functions[] = {
    METHOD(items_are), METHOD(attributes_are), METHOD(types_are), METHOD(sizes_are), {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "hfaccel._snapshot", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__snapshot(void)
{
  return PyModuleDef_Init(&definition);
}
