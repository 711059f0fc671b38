/* hfaccel._arena: memory on huge pages, and services of the kernel and of malloc. */
#include "../os.h"
#include "seam.h"

static PyMethodDef functions[] = {{"smaps", smaps, METH_VARARGS, NULL},
                                  {"malloc_owner", malloc_owner, METH_NOARGS, NULL},
                                  {"make_huge", make_huge, METH_VARARGS, NULL},
                                  {"reserve_heap", reserve_heap, METH_VARARGS, NULL},
                                  {"trim_heap", trim_heap, METH_NOARGS, NULL},
                                  {"mallopt", set_malloc, METH_VARARGS, NULL},
                                  {"set_memory_policy", set_memory_policy, METH_VARARGS, NULL},
                                  {"memory_policy", memory_policy, METH_NOARGS, NULL},
                                  {"end_with_parent", end_with_parent, METH_VARARGS, NULL},
                                  {"count_event", count_event, METH_VARARGS, NULL},
                                  {"saved_state", saved_state, METH_NOARGS, NULL},
                                  {"requestable_state", requestable_state, METH_NOARGS, NULL},
                                  {NULL, NULL, 0, NULL}};

static int execute(PyObject *module)
{
  PyObject *type = PyType_FromSpec(&region_spec);
  const int failed = type == NULL || PyModule_AddObjectRef(module, "Region", type) < 0 ||
                     PyModule_AddIntConstant(module, "HUGE_PAGE_SIZE", (long)OS_HUGE_PAGE_SIZE) < 0;
  Py_XDECREF(type);
  return -failed;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "hfaccel._arena", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__arena(void)
{
  return PyModuleDef_Init(&definition);
}
