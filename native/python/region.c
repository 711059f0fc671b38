/* Region: anonymous memory, aligned to huge pages, with the buffer protocol. */
#include "../region.h"

#include <errno.h>

#include "../os.h"
#include "../policy.h"
#include "seam.h"

struct object {
  PyObject_HEAD struct region region;
};

static const struct region *region_of(PyObject *object)
{
  return &((struct object *)object)->region;
}

static const char *const page_names[] = {"default", "thp", "hugetlb", "hugetlb-1g"}; /* enum region_pages */
enum { PAGE_NAMES = sizeof page_names / sizeof *page_names };

/* Region(size, pages="thp", node=-1, locked=False) */
static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  static char *names[] = {"size", "pages", "node", "locked", NULL};
  size_t size;
  const char *pages = "thp";
  struct region_wishes wishes = {.node = -1};
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|slp", names, to_bytes, &size, &pages, &wishes.node,
                                   &wishes.locked))
    return NULL;
  const int kind = find(pages, page_names, PAGE_NAMES);
  if (kind < 0)
    return PyErr_Format(PyExc_ValueError, "pages must be default, thp, hugetlb or hugetlb-1g, but got '%s'",
                        pages);
  if (size == 0 || size > PY_SSIZE_T_MAX - OS_HUGETLB_1G)
    return PyErr_Format(PyExc_ValueError, "`0 < size < 2**63` bytes must hold, but got size=%zu", size);
  wishes.pages = (enum region_pages)kind;
  struct region region;
  int error;
  Py_BEGIN_ALLOW_THREADS; /* hugetlb pages are touched here, which takes time */
  error = region_create(&region, size, &wishes);
  Py_END_ALLOW_THREADS;
  if (error == ERANGE)
    return PyErr_Format(PyExc_ValueError, "`node < %d` must hold, but got %ld", POLICY_MAX_NODES,
                        wishes.node);
  if (error != 0)
    return os_error(error, "mmap", NULL, size);
  allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  struct object *self = (struct object *)allocate(type, 0);
  if (self == NULL)
    region_release(&region);
  else
    self->region = region;
  return (PyObject *)self;
}

static void dealloc(PyObject *object)
{
  PyTypeObject *type = Py_TYPE(object);
  freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
  region_release(&((struct object *)object)->region);
  free_object(object);
  Py_DECREF(type);
}

/* Region.populate(offset, size) -> None: make the bytes present */
static PyObject *populate(PyObject *object, PyObject *args)
{
  const struct region *region = region_of(object);
  size_t offset, size;
  if (!PyArg_ParseTuple(args, "O&O&", to_bytes, &offset, to_bytes, &size))
    return NULL;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = region_populate(region, offset, size);
  Py_END_ALLOW_THREADS;
  if (error == ERANGE)
    return PyErr_Format(PyExc_ValueError, "`offset + size <= %zu` must hold, but got offset=%zu, size=%zu",
                        region->size, offset, size);
  if (error != 0)
    return os_error(error, "madvise(MADV_POPULATE_WRITE)", (char *)region->address + offset, size);
  Py_RETURN_NONE;
}

/* Region.address: of the first byte */
static PyObject *get_address(PyObject *object, void *closure)
{
  return PyLong_FromVoidPtr(region_of(object)->address);
}

/* Region.pages: the pages that were granted, by a name of page_names */
static PyObject *get_pages(PyObject *object, void *closure)
{
  return PyUnicode_FromString(page_names[region_of(object)->pages]);
}

/* Region.refused: ((call, errno), ...) of what was wished for and not granted */
static PyObject *get_refused(PyObject *object, void *closure)
{
  const struct region *region = region_of(object);
  const struct {
    const char *call;
    int error;
  } wishes[] = {
      {"mmap(MAP_HUGETLB)", region->hugetlb_error},
      {"madvise(MADV_HUGEPAGE)", region->advise_error},
      {"mbind", region->node_error},
      {"mlock", region->lock_error},
  };
  PyObject *refused = PyList_New(0);
  for (size_t i = 0; refused != NULL && i < sizeof wishes / sizeof *wishes; i++)
    if (wishes[i].error != 0)
      append(&refused, Py_BuildValue("(si)", wishes[i].call, wishes[i].error));
  return to_tuple(refused);
}

static Py_ssize_t length(PyObject *object)
{
  return (Py_ssize_t)region_of(object)->size;
}

static int get_buffer(PyObject *object, Py_buffer *view, int flags)
{
  return PyBuffer_FillInfo(view, object, region_of(object)->address, length(object), 0, flags);
}

static PyMethodDef methods[] = {{"populate", populate, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyGetSetDef attributes[] = {{"address", get_address, NULL, NULL, NULL},
                                   {"pages", get_pages, NULL, NULL, NULL},
                                   {"refused", get_refused, NULL, NULL, NULL},
                                   {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {{Py_tp_new, new},
                              {Py_tp_dealloc, dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, attributes},
                              {Py_sq_length, length},
                              {Py_bf_getbuffer, get_buffer},
                              {0, NULL}};

PyType_Spec region_spec = {.name = "hfaccel._arena.Region",
                           .basicsize = sizeof(struct object),
                           .flags = Py_TPFLAGS_DEFAULT,
                           .slots = slots};
