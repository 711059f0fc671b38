/* Objects that hold a struct of the kernels, and the conversion of arguments. */
#include <stddef.h>
#include <string.h>

#include "embed.h"
#include "experts.h"
#include "seam.h"

struct object {
  PyObject_HEAD max_align_t content[];
};

static const struct {
  const char *name;
  size_t size;
  int (*read)(PyObject *args, void *content);
} kinds[TYPES] = {
    [MATRIX] = {"hfaccel._kernels.Matrix", sizeof(struct matrix), read_matrix},
    [NORM] = {"hfaccel._kernels.Norm", sizeof(struct norm), read_norm},
    [LAYER] = {"hfaccel._kernels.Layer", sizeof(struct layer), read_layer},
    [SEQUENCES] = {"hfaccel._kernels.Sequences", sizeof(struct sequences), read_sequences},
    [BIAS] = {"hfaccel._kernels.Bias", sizeof(struct bias), read_bias},
    [ROTARY] = {"hfaccel._kernels.Rotary", sizeof(struct rotary), read_rotary},
    [PAST] = {"hfaccel._kernels.Past", sizeof(struct past), read_past},
    [RELATIVE] = {"hfaccel._kernels.Relative", sizeof(struct relative), read_relative},
    [EMBEDDING] = {"hfaccel._kernels.Embedding", sizeof(struct embedding), read_embedding},
    [EXPERTS] = {"hfaccel._kernels.Experts", sizeof(struct experts), read_experts},
};

static PyTypeObject *types[TYPES]; /* made once, kept for the life of the process */

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  if (kwargs != NULL && PyDict_Size(kwargs) > 0)
    return PyErr_Format(PyExc_TypeError, "%R takes no keyword arguments", type);
  allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  struct object *self = (struct object *)allocate(type, 0); /* all zeros */
  int number = 0;
  while (types[number] != type)
    number++;
  if (self != NULL && !kinds[number].read(args, self->content))
    Py_CLEAR(self);
  return (PyObject *)self;
}

static void dealloc(PyObject *object)
{
  PyTypeObject *type = Py_TYPE(object);
  freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
  free_object(object);
  Py_DECREF(type);
}

int add_types(PyObject *module)
{
  PyType_Slot slots[] = {{Py_tp_new, new}, {Py_tp_dealloc, dealloc}, {0, NULL}};
  for (int i = 0; i < TYPES; i++) {
    PyType_Spec spec = {.name = kinds[i].name,
                        .basicsize = (int)(offsetof(struct object, content) + kinds[i].size),
                        .flags = Py_TPFLAGS_DEFAULT,
                        .slots = slots};
    if (types[i] == NULL)
      types[i] = (PyTypeObject *)PyType_FromSpec(&spec);
    if (types[i] == NULL ||
        PyModule_AddObjectRef(module, strrchr(kinds[i].name, '.') + 1, (PyObject *)types[i]) < 0)
      return -1;
  }
  return 0;
}

const void *content_of(PyObject *object, enum type type)
{
  if (Py_IS_TYPE(object, types[type]))
    return ((struct object *)object)->content;
  PyErr_Format(PyExc_TypeError, "%s must be given, but got %R", kinds[type].name, object);
  return NULL;
}

static int copy(PyObject *object, enum type type, void *out)
{
  const void *content = content_of(object, type);
  if (content != NULL)
    memcpy(out, content, kinds[type].size);
  return content != NULL;
}

#define CONVERTER(name, type, optional)                                                                      \
  int name(PyObject *object, void *out)                                                                      \
  {                                                                                                          \
    return (optional && object == Py_None) || copy(object, type, out);                                       \
  }
CONVERTER(to_matrix, MATRIX, 0)
CONVERTER(to_matrix_or_none, MATRIX, 1)
CONVERTER(to_norm, NORM, 0)
CONVERTER(to_norm_or_none, NORM, 1)
CONVERTER(to_experts_or_none, EXPERTS, 1)
CONVERTER(to_past_or_none, PAST, 1)
CONVERTER(to_sequences, SEQUENCES, 0)
CONVERTER(to_bias_or_none, BIAS, 1)
CONVERTER(to_rotary_or_none, ROTARY, 1)
CONVERTER(to_relative_or_none, RELATIVE, 1)

int to_address(PyObject *object, void *out)
{
  void *address = PyLong_AsVoidPtr(object);
  memcpy(out, &address, sizeof address); /* a pointer of any type */
  return !PyErr_Occurred();
}

int to_size(PyObject *object, void *out)
{
  const Py_ssize_t size = PyLong_AsSsize_t(object);
  if (size < 0 && !PyErr_Occurred())
    PyErr_Format(PyExc_ValueError, "sizes of 0 or more must hold, but got %zd", size);
  *(size_t *)out = (size_t)size;
  return size >= 0;
}

int to_number(PyObject *object, void *out)
{
  const long number = PyLong_AsLong(object);
  if (number == -1 && PyErr_Occurred())
    return 0;
  *(enum number *)out = (enum number)number;
  return must_hold(number >= NUMBER_F32 && number <= NUMBER_I8, "a number of enum number");
}

int to_threads(PyObject *object, void *out)
{
  int threads = 1;
  const int is_number = PyArg_Parse(object, "i", &threads);
  *(unsigned *)out = threads > 0 ? (unsigned)threads : 1;
  return is_number;
}

int to_activation(PyObject *object, void *out)
{
  int number = 0;
  if (PyArg_Parse(object, "i", &number) && (number < 0 || number >= ACTIVATIONS))
    PyErr_Format(PyExc_ValueError, "`0 <= activation < %d` must hold, but got %d", ACTIVATIONS, number);
  *(enum activation *)out = (enum activation)number;
  return !PyErr_Occurred();
}

int must_hold(int holds, const char *rule)
{
  if (!holds)
    PyErr_Format(PyExc_ValueError, "%s must hold", rule);
  return holds;
}

PyObject *done(int error)
{
  if (error)
    return PyErr_NoMemory();
  Py_RETURN_NONE;
}
