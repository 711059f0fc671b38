/* hfaccel._kernels_<set>: the extension module of one instruction set. It cannot be imported on a CPU that
 * lacks the set, so none of its functions can be called there. */
#include "module.h"

#include "scratch.h"
#include "seam.h"
#include "team.h"

/* use_threads(address of torch_parallel_for; 0: one thread) -> None */
static PyObject *use_threads(PyObject *module, PyObject *address)
{
  const size_t function = PyLong_AsSize_t(address);
  if (PyErr_Occurred())
    return NULL;
  team_use((parallel_for)function);
  Py_RETURN_NONE;
}

/* use_cache(bytes of a core's second-level cache) -> None. Not while kernels run. */
static PyObject *use_cache(PyObject *module, PyObject *bytes)
{
  const size_t size = PyLong_AsSize_t(bytes);
  if (PyErr_Occurred())
    return NULL;
  block_bytes = size / 4 * 3;
  Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"run_layers", run_layers, METH_VARARGS, NULL}, {"linear", linear, METH_VARARGS, NULL},
    {"embed", embed, METH_VARARGS, NULL},           {"experts", experts, METH_VARARGS, NULL},
    {"count", count, METH_VARARGS, NULL},           {"use_threads", use_threads, METH_O, NULL},
    {"use_cache", use_cache, METH_O, NULL},         {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = 0, .m_methods = functions};

/* PANEL, and whether instructions multiply bfloat16 and int8: packed weights and layers depend on these. */
static int add_constants(PyObject *module)
{
  return PyModule_AddIntMacro(module, PANEL) < 0 || PyModule_AddIntMacro(module, DOT_BF16) < 0 ||
         PyModule_AddIntMacro(module, DOT_I8) < 0;
}

PyObject *module_create(void)
{
  PyObject *module = PyModule_Create(&definition);
  if (module != NULL && (add_types(module) < 0 || add_constants(module)))
    Py_CLEAR(module);
  return module;
}
