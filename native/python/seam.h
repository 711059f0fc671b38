/* Declarations shared by the files of this folder: the interface between Python and hfaccel._arena. These
 * files only convert arguments, and error codes to OSError; everything else is in the folder above. */
#pragma once
#include <Python.h>

/* OSError(errno, "madvise of 4194304 bytes at 0x...: Cannot allocate memory") */
PyObject *os_error(int code, const char *call, const void *address, size_t size);

/* OSError(errno, "set_mempolicy: Operation not permitted") */
PyObject *call_error(int code, const char *call);

/* None; call_error for a code that is not 0. */
PyObject *none_or_error(int code, const char *call);

/* Converts a count from Python: 1, or 0 with a ValueError that names the rule if the count is negative or too
 * large. */
int to_count(PyObject *number, const char *name, size_t *count);

/* The same for a number of bytes, as a converter for PyArg_ParseTuple ("O&"). */
int to_bytes(PyObject *number, void *bytes);

/* The index of a name in a table; -1 if the table does not have it. */
int find(const char *name, const char *const *names, int count);

/* Appends a new object (NULL: an exception is set) to a list, which becomes NULL on failure. */
void append(PyObject **list, PyObject *object);

/* Converts the list to a tuple and releases the list; NULL stays NULL. */
PyObject *to_tuple(PyObject *list);

extern PyType_Spec region_spec; /* Region, in region.c */

PyObject *smaps(PyObject *module, PyObject *args);
PyObject *make_huge(PyObject *module, PyObject *args);
PyObject *reserve_heap(PyObject *module, PyObject *args);
PyObject *trim_heap(PyObject *module, PyObject *unused);
PyObject *malloc_owner(PyObject *module, PyObject *unused);
PyObject *set_malloc(PyObject *module, PyObject *args);

PyObject *set_memory_policy(PyObject *module, PyObject *args);
PyObject *memory_policy(PyObject *module, PyObject *unused);

PyObject *saved_state(PyObject *module, PyObject *unused);
PyObject *requestable_state(PyObject *module, PyObject *unused);
PyObject *end_with_parent(PyObject *module, PyObject *args);
PyObject *count_event(PyObject *module, PyObject *args);
