/* Errors, arguments and results. */
#include "seam.h"

#include <stdio.h>
#include <string.h>

static PyObject *raise_os_error(int code, const char *message)
{
  PyObject *arguments = Py_BuildValue("(is)", code, message);
  if (arguments != NULL)
    PyErr_SetObject(PyExc_OSError, arguments);
  Py_XDECREF(arguments);
  return NULL;
}

PyObject *os_error(int code, const char *call, const void *address, size_t size)
{
  char message[256];
  snprintf(message, sizeof message, "%s of %zu bytes at %p: %s", call, size, address, strerror(code));
  return raise_os_error(code, message);
}

PyObject *call_error(int code, const char *call)
{
  char message[128];
  snprintf(message, sizeof message, "%s: %s", call, strerror(code));
  return raise_os_error(code, message);
}

PyObject *none_or_error(int code, const char *call)
{
  if (code != 0)
    return call_error(code, call);
  Py_RETURN_NONE;
}

int to_count(PyObject *number, const char *name, size_t *count)
{
  *count = PyLong_AsSize_t(number);
  if (*count != (size_t)-1 || !PyErr_Occurred())
    return 1;
  if (PyErr_ExceptionMatches(PyExc_OverflowError))
    PyErr_Format(PyExc_ValueError, "`0 <= %s < 2**64` must hold, but got %S", name, number);
  return 0;
}

int to_bytes(PyObject *number, void *bytes)
{
  return to_count(number, "bytes", bytes);
}

int find(const char *name, const char *const *names, int count)
{
  for (int i = 0; i < count; i++)
    if (strcmp(name, names[i]) == 0)
      return i;
  return -1;
}

void append(PyObject **list, PyObject *object)
{
  if (object == NULL || *list == NULL || PyList_Append(*list, object) < 0)
    Py_CLEAR(*list);
  Py_XDECREF(object);
}

PyObject *to_tuple(PyObject *list)
{
  PyObject *tuple = list == NULL ? NULL : PyList_AsTuple(list);
  Py_XDECREF(list);
  return tuple;
}
