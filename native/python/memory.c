/* The pages that the kernel gave, huge pages for memory of other owners, and malloc. */
#include "../heap.h"
#include "../os.h"
#include "../smaps.h"
#include "seam.h"

/* smaps(address, size) -> (resident, anon_huge, file_huge), bytes */
PyObject *smaps(PyObject *module, PyObject *args)
{
  size_t address, size;
  if (!PyArg_ParseTuple(args, "O&O&", to_bytes, &address, to_bytes, &size))
    return NULL;
  struct smaps_sum sum;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = smaps_sum("/proc/self/smaps", address, size, &sum);
  Py_END_ALLOW_THREADS;
  if (error != 0)
    return os_error(error, "reading /proc/self/smaps", (void *)address, size);
  return Py_BuildValue("(nnn)", (Py_ssize_t)sum.resident, (Py_ssize_t)sum.anon_huge,
                       (Py_ssize_t)sum.file_huge);
}

/* Reduces a range to the whole pages of `page` bytes inside it; size 0 if there are none. */
static void shrink_to_pages(size_t *address, size_t *size, size_t page)
{
  const size_t start = (*address + page - 1) / page * page;
  const size_t end = (*address + *size) / page * page;
  *address = start;
  *size = end > start ? end - start : 0;
}

/* make_huge(address, size, collapse) -> errno of the advice for, or the collapse of, the pages in a range
 * that belongs to this process; 0: granted */
PyObject *make_huge(PyObject *module, PyObject *args)
{
  size_t address, size;
  int collapse;
  if (!PyArg_ParseTuple(args, "O&O&p", to_bytes, &address, to_bytes, &size, &collapse))
    return NULL;
  if (size > SIZE_MAX - address)
    return PyErr_Format(PyExc_ValueError, "`address + size < 2**64` must hold, but got %zu + %zu", address,
                        size);
  shrink_to_pages(&address, &size, collapse ? OS_HUGE_PAGE_SIZE : 4096);
  int error = 0;
  Py_BEGIN_ALLOW_THREADS;
  if (size > 0)
    error = collapse ? os_collapse((void *)address, size) : os_advise_huge((void *)address, size);
  Py_END_ALLOW_THREADS;
  return PyLong_FromLong(error);
}

/* reserve_heap(size) -> address: huge pages for what malloc will give out next; see heap.h */
PyObject *reserve_heap(PyObject *module, PyObject *args)
{
  size_t size;
  if (!PyArg_ParseTuple(args, "O&", to_bytes, &size))
    return NULL;
  void *address;
  const int error = heap_reserve(size, &address);
  return error == 0 ? PyLong_FromVoidPtr(address) : os_error(error, "reserving the heap", NULL, size);
}

/* trim_heap() -> bool: whether libc gave memory back */
PyObject *trim_heap(PyObject *module, PyObject *unused)
{
  int trimmed;
  Py_BEGIN_ALLOW_THREADS;
  trimmed = heap_trim();
  Py_END_ALLOW_THREADS;
  return PyBool_FromLong(trimmed);
}

/* malloc_owner() -> path of the library that serves malloc */
PyObject *malloc_owner(PyObject *module, PyObject *unused)
{
  char path[4096];
  const int error = heap_owner(path, sizeof path);
  return error == 0 ? PyUnicode_DecodeFSDefault(path) : os_error(error, "dladdr(malloc)", NULL, 0);
}

/* mallopt(option, value) -> bool: whether libc accepted it */
PyObject *set_malloc(PyObject *module, PyObject *args)
{
  int option, value;
  if (!PyArg_ParseTuple(args, "ii", &option, &value))
    return NULL;
  return PyBool_FromLong(heap_set_option(option, value) == 0);
}
