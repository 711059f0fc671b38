/* hfaccel._arena: the seam between Python and C. Behaviour lives in the other files; here are only the method
 * table, the conversion of arguments, and error codes turned into OSError. */
#include <Python.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cpu.h"
#include "heap.h"
#include "os.h"
#include "policy.h"
#include "region.h"
#include "smaps.h"

typedef struct {
  PyObject_HEAD struct region region;
} RegionObject;

static PyObject *raise_os_error(int code, const char *message)
{
  PyObject *arguments = Py_BuildValue("(is)", code, message);
  if (arguments != NULL) {
    PyErr_SetObject(PyExc_OSError, arguments);
    Py_DECREF(arguments);
  }
  return NULL;
}

/* OSError(errno, "madvise of 4194304 bytes at 0x...: Cannot allocate memory") */
static PyObject *os_error(int code, const char *call, const void *address, size_t size)
{
  char message[256];
  snprintf(message, sizeof message, "%s of %zu bytes at %p: %s", call, size, address, strerror(code));
  return raise_os_error(code, message);
}

/* OSError(errno, "set_mempolicy: Operation not permitted") */
static PyObject *call_error(int code, const char *call)
{
  char message[128];
  snprintf(message, sizeof message, "%s: %s", call, strerror(code));
  return raise_os_error(code, message);
}

/* A count from Python: negative and overlong numbers are ValueErrors that name the argument. */
static int to_size(PyObject *number, const char *name, size_t *size)
{
  *size = PyLong_AsSize_t(number);
  if (*size == (size_t)-1 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError))
      return -1;
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "`0 <= %s < 2**64` must hold, but got %S", name, number);
    return -1;
  }
  return 0;
}

/* The place of a name in a table; -1: not in it. */
static int find(const char *name, const char *const *names, int count)
{
  for (int i = 0; i < count; i++)
    if (strcmp(name, names[i]) == 0)
      return i;
  return -1;
}

static const char *const page_names[] = {"default", "thp", "hugetlb", "hugetlb-1g"}; /* enum region_pages */
enum { PAGE_NAMES = sizeof page_names / sizeof *page_names };

/* Region(size, pages="thp", node=-1, locked=False) */
static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  static char *names[] = {"size", "pages", "node", "locked", NULL};
  PyObject *number;
  size_t size;
  const char *pages = "thp";
  struct region_wishes wishes = {.node = -1};
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|slp", names, &PyLong_Type, &number, &pages, &wishes.node,
                                   &wishes.locked) ||
      to_size(number, "size", &size) < 0)
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
  RegionObject *self = (RegionObject *)allocate(type, 0);
  if (self == NULL) {
    region_release(&region);
    return NULL;
  }
  self->region = region;
  return (PyObject *)self;
}

static void region_dealloc(PyObject *object)
{
  PyTypeObject *type = Py_TYPE(object);
  freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
  region_release(&((RegionObject *)object)->region);
  free_object(object);
  Py_DECREF(type);
}

/* Region.populate(offset, size) -> None */
static PyObject *region_populate_py(PyObject *object, PyObject *args)
{
  const struct region *region = &((RegionObject *)object)->region;
  PyObject *offset_number, *size_number;
  size_t offset, size;
  if (!PyArg_ParseTuple(args, "O!O!", &PyLong_Type, &offset_number, &PyLong_Type, &size_number) ||
      to_size(offset_number, "offset", &offset) < 0 || to_size(size_number, "size", &size) < 0)
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

static PyObject *region_get_address(PyObject *object, void *closure)
{
  (void)closure;
  return PyLong_FromVoidPtr(((RegionObject *)object)->region.address);
}

static PyObject *region_get_pages(PyObject *object, void *closure)
{
  (void)closure;
  return PyUnicode_FromString(page_names[((RegionObject *)object)->region.pages]);
}

/* refused: ((call, errno), ...) of what was wished for and not granted */
static PyObject *region_get_refused(PyObject *object, void *closure)
{
  (void)closure;
  const struct region *region = &((RegionObject *)object)->region;
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
  for (size_t i = 0; refused != NULL && i < sizeof wishes / sizeof *wishes; i++) {
    if (wishes[i].error == 0)
      continue;
    PyObject *pair = Py_BuildValue("(si)", wishes[i].call, wishes[i].error);
    if (pair == NULL || PyList_Append(refused, pair) < 0)
      Py_CLEAR(refused);
    Py_XDECREF(pair);
  }
  if (refused == NULL)
    return NULL;
  PyObject *tuple = PyList_AsTuple(refused);
  Py_DECREF(refused);
  return tuple;
}

static Py_ssize_t region_length(PyObject *object)
{
  return (Py_ssize_t)((RegionObject *)object)->region.size;
}

static int region_get_buffer(PyObject *object, Py_buffer *view, int flags)
{
  const struct region *region = &((RegionObject *)object)->region;
  return PyBuffer_FillInfo(view, object, region->address, (Py_ssize_t)region->size, 0, flags);
}

/* smaps(address, size) -> (resident, anon_huge, file_huge), bytes */
static PyObject *smaps_py(PyObject *module, PyObject *args)
{
  (void)module;
  PyObject *address_number, *size_number;
  size_t address, size;
  if (!PyArg_ParseTuple(args, "O!O!", &PyLong_Type, &address_number, &PyLong_Type, &size_number) ||
      to_size(address_number, "address", &address) < 0 || to_size(size_number, "size", &size) < 0)
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

/* Whole pages of `page` bytes inside a range; size 0 where there is none. */
static void shrink_to_pages(size_t *address, size_t *size, size_t page)
{
  const size_t start = (*address + page - 1) / page * page;
  const size_t end = (*address + *size) / page * page;
  *address = start;
  *size = end > start ? end - start : 0;
}

/* make_huge(address, size, collapse) -> errno of the advice for, or the collapse of, the pages in a range
 * that belongs to this process; 0: granted */
static PyObject *make_huge_py(PyObject *module, PyObject *args)
{
  (void)module;
  PyObject *address_number, *size_number;
  size_t address, size;
  int collapse;
  if (!PyArg_ParseTuple(args, "O!O!p", &PyLong_Type, &address_number, &PyLong_Type, &size_number,
                        &collapse) ||
      to_size(address_number, "address", &address) < 0 || to_size(size_number, "size", &size) < 0)
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

/* reserve_heap(size) -> address: see heap.h */
static PyObject *reserve_heap_py(PyObject *module, PyObject *args)
{
  (void)module;
  PyObject *number;
  size_t size;
  if (!PyArg_ParseTuple(args, "O!", &PyLong_Type, &number) || to_size(number, "size", &size) < 0)
    return NULL;
  void *address;
  const int error = heap_reserve(size, &address);
  if (error != 0)
    return os_error(error, "reserving the heap", NULL, size);
  return PyLong_FromVoidPtr(address);
}

/* trim_heap() -> bool: whether libc gave memory back */
static PyObject *trim_heap_py(PyObject *module, PyObject *unused)
{
  (void)module;
  (void)unused;
  int trimmed;
  Py_BEGIN_ALLOW_THREADS;
  trimmed = heap_trim();
  Py_END_ALLOW_THREADS;
  return PyBool_FromLong(trimmed);
}

/* malloc_owner() -> path of the library that serves malloc */
static PyObject *malloc_owner_py(PyObject *module, PyObject *unused)
{
  (void)module;
  (void)unused;
  char path[4096];
  const int error = heap_owner(path, sizeof path);
  return error == 0 ? PyUnicode_DecodeFSDefault(path) : os_error(error, "dladdr(malloc)", NULL, 0);
}

/* mallopt(option, value) -> bool: whether libc accepted it */
static PyObject *mallopt_py(PyObject *module, PyObject *args)
{
  (void)module;
  int option, value;
  if (!PyArg_ParseTuple(args, "ii", &option, &value))
    return NULL;
  return PyBool_FromLong(heap_set_option(option, value) == 0);
}

static const char *const policy_names[] = {"default", "preferred", "bind", "interleave"};
enum { POLICY_NAMES = sizeof policy_names / sizeof *policy_names };

/* set_memory_policy(mode, nodes) -> None */
static PyObject *set_memory_policy_py(PyObject *module, PyObject *args)
{
  (void)module;
  const char *name;
  PyObject *nodes;
  if (!PyArg_ParseTuple(args, "sO!", &name, &PyTuple_Type, &nodes))
    return NULL;
  const int mode = find(name, policy_names, POLICY_NAMES);
  if (mode < 0)
    return PyErr_Format(PyExc_ValueError, "mode must be default, preferred, bind or interleave, but got '%s'",
                        name);
  struct policy policy = {.mode = (enum policy_mode)mode};
  for (Py_ssize_t i = 0; i < PyTuple_Size(nodes); i++) {
    size_t node;
    if (to_size(PyTuple_GetItem(nodes, i), "node", &node) < 0)
      return NULL;
    if (policy_add_node(&policy, node) != 0)
      return PyErr_Format(PyExc_ValueError, "`node < %d` must hold, but got %zu", POLICY_MAX_NODES, node);
  }
  const int error = policy_set(&policy);
  if (error != 0)
    return call_error(error, "set_mempolicy");
  Py_RETURN_NONE;
}

/* memory_policy() -> (mode, nodes) of the calling thread */
static PyObject *memory_policy_py(PyObject *module, PyObject *unused)
{
  (void)module;
  (void)unused;
  struct policy policy;
  const int error = policy_get(&policy);
  if (error != 0)
    return call_error(error, "get_mempolicy");
  PyObject *nodes = PyList_New(0);
  for (size_t node = 0; nodes != NULL && node < POLICY_MAX_NODES; node++) {
    if (!policy_has_node(&policy, node))
      continue;
    PyObject *number = PyLong_FromSize_t(node);
    if (number == NULL || PyList_Append(nodes, number) < 0)
      Py_CLEAR(nodes);
    Py_XDECREF(number);
  }
  if (nodes == NULL)
    return NULL;
  PyObject *tuple = PyList_AsTuple(nodes);
  Py_DECREF(nodes);
  const char *name = (int)policy.mode < POLICY_NAMES ? policy_names[policy.mode] : "other";
  return tuple == NULL ? NULL : Py_BuildValue("(sN)", name, tuple);
}

/* saved_state() and requestable_state(): bit masks of register sets */
static PyObject *state(int (*read)(uint64_t *), const char *call)
{
  uint64_t mask = 0;
  const int error = read(&mask);
  return error == 0 ? PyLong_FromUnsignedLongLong(mask) : call_error(error, call);
}

static PyObject *saved_state_py(PyObject *module, PyObject *unused)
{
  (void)module;
  (void)unused;
  return state(cpu_saved_state, "xgetbv");
}

static PyObject *requestable_state_py(PyObject *module, PyObject *unused)
{
  (void)module;
  (void)unused;
  return state(cpu_requestable_state, "arch_prctl(ARCH_GET_XCOMP_SUPP)");
}

/* end_with_parent(signal) -> None: send this process the signal when its parent's thread ends */
static PyObject *end_with_parent_py(PyObject *module, PyObject *args)
{
  (void)module;
  int number;
  if (!PyArg_ParseTuple(args, "i", &number))
    return NULL;
  const int error = os_end_with_parent(number);
  if (error != 0)
    return call_error(error, "prctl(PR_SET_PDEATHSIG)");
  Py_RETURN_NONE;
}

/* count_event(type, config) -> file descriptor: see os_count_event in os.h */
static PyObject *count_event_py(PyObject *module, PyObject *args)
{
  (void)module;
  unsigned int type;
  unsigned long long config;
  if (!PyArg_ParseTuple(args, "IK", &type, &config))
    return NULL;
  int file;
  const int error = os_count_event(type, config, &file);
  return error == 0 ? PyLong_FromLong(file) : call_error(error, "perf_event_open");
}

static PyMethodDef region_methods[] = {
    {"populate", region_populate_py, METH_VARARGS, "populate(offset, size): make the bytes present."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef region_getset[] = {
    {"address", region_get_address, NULL, "Address of the first byte.", NULL},
    {"pages", region_get_pages, NULL, "What it is made of: default, thp, hugetlb or hugetlb-1g.", NULL},
    {"refused", region_get_refused, NULL, "((call, errno), ...) of what the system refused.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot region_slots[] = {
    {Py_tp_doc, "Region(size, pages='thp', node=-1, locked=False): anonymous memory, aligned to huge pages."},
    {Py_tp_new, region_new},
    {Py_tp_dealloc, region_dealloc},
    {Py_tp_methods, region_methods},
    {Py_tp_getset, region_getset},
    {Py_sq_length, region_length},
    {Py_bf_getbuffer, region_get_buffer},
    {0, NULL},
};

static PyType_Spec region_spec = {
    .name = "hfaccel._arena.Region",
    .basicsize = sizeof(RegionObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = region_slots,
};

static PyMethodDef functions[] = {
    {"smaps", smaps_py, METH_VARARGS, "smaps(address, size) -> (resident, anon_huge, file_huge) bytes."},
    {"malloc_owner", malloc_owner_py, METH_NOARGS, "Path of the library that serves malloc."},
    {"make_huge", make_huge_py, METH_VARARGS,
     "make_huge(address, size, collapse) -> errno: advise or collapse the whole pages of a range."},
    {"reserve_heap", reserve_heap_py, METH_VARARGS,
     "reserve_heap(size) -> address: huge pages for what malloc will give out next."},
    {"trim_heap", trim_heap_py, METH_NOARGS, "trim_heap() -> whether libc gave memory back."},
    {"mallopt", mallopt_py, METH_VARARGS, "mallopt(option, value) -> whether libc accepted it."},
    {"set_memory_policy", set_memory_policy_py, METH_VARARGS,
     "set_memory_policy(mode, nodes): where this thread's new pages come from."},
    {"memory_policy", memory_policy_py, METH_NOARGS, "memory_policy() -> (mode, nodes) of this thread."},
    {"end_with_parent", end_with_parent_py, METH_VARARGS,
     "end_with_parent(signal): get the signal when the parent ends."},
    {"count_event", count_event_py, METH_VARARGS,
     "count_event(type, config) -> file descriptor of a counter for this thread and those it starts."},
    {"saved_state", saved_state_py, METH_NOARGS, "XCR0: register sets that the kernel saves."},
    {"requestable_state", requestable_state_py, METH_NOARGS,
     "Register sets that a program may ask the kernel for; bit 18 is AMX."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
  PyObject *type = PyType_FromSpec(&region_spec);
  if (type == NULL)
    return -1;
  const int result = PyModule_AddObjectRef(module, "Region", type);
  Py_DECREF(type);
  if (result < 0)
    return -1;
  return PyModule_AddIntConstant(module, "HUGE_PAGE_SIZE", (long)OS_HUGE_PAGE_SIZE);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "hfaccel._arena",
    .m_doc = "Huge-page memory, and what the kernel and malloc made of it.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__arena(void)
{
  return PyModuleDef_Init(&module_definition);
}
