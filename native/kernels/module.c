/* hfaccel._kernels_<set>: the seam between Python and the kernels of one instruction set. Arguments are
 * addresses and sizes; who calls keeps the memory alive, and has checked types and shapes. The module cannot
 * be imported where the CPU lacks the set, so nothing of it can be called there. */
#include <Python.h>
#include <errno.h>
#include <string.h>

#include "embed.h"
#include "layer.h"
#include "linear.h"
#include "module.h"
#include "team.h"

/* Sizes that fit no memory; which addresses are missing. What lies at an address cannot be checked. */
static PyObject *refuse(const char *rule)
{
  return PyErr_Format(PyExc_ValueError, "%s must hold", rule);
}

static PyObject *no_memory(int error)
{
  if (error)
    return PyErr_NoMemory();
  Py_RETURN_NONE;
}

/* matrix: (kind, columns, words, panels, scales, sums, factors, bias, exact, exact_inputs); the last seven
 * are addresses, 0 for none */
static int to_matrix(PyObject *object, void *out)
{
  struct matrix *matrix = out;
  int kind;
  Py_ssize_t columns, words;
  unsigned long long panels, scales, sums, factors, bias, exact, exact_inputs;
  if (!PyTuple_Check(object)) {
    PyErr_SetString(PyExc_TypeError, "a matrix must be a tuple");
    return 0;
  }
  if (!PyArg_ParseTuple(object, "innKKKKKKK", &kind, &columns, &words, &panels, &scales, &sums, &factors,
                        &bias, &exact, &exact_inputs))
    return 0;
  if (kind < 0 || kind >= KINDS || columns < 0 || words < 0) {
    PyErr_Format(PyExc_ValueError,
                 "`0 <= kind < %d` and sizes of 0 or more must hold, but got (%d, %zd, %zd)", KINDS, kind,
                 columns, words);
    return 0;
  }
  if (columns > 0 && (panels == 0 || (kind == KIND_I8 && (scales == 0 || sums == 0 || factors == 0)))) {
    refuse("addresses of panels, and for int8 of scales, sums and factors, that are not 0");
    return 0;
  }
  if ((exact == 0) != (exact_inputs == 0)) {
    refuse("exact and exact_inputs together");
    return 0;
  }
  *matrix = (struct matrix){.kind = (enum kind)kind,
                            .columns = (size_t)columns,
                            .words = (size_t)words,
                            .panels = (const uint32_t *)panels,
                            .scales = (const float *)scales,
                            .sums = (const float *)sums,
                            .factors = (const float *)factors,
                            .bias = (const float *)bias,
                            .exact = (const float *)exact,
                            .exact_inputs = (const int32_t *)exact_inputs};
  return 1;
}

/* norm: (weight, bias, epsilon, kind); the first two are addresses, 0 for none */
static int to_norm(PyObject *object, void *out)
{
  struct norm *norm = out;
  unsigned long long weight, bias;
  int kind;
  if (!PyTuple_Check(object)) {
    PyErr_SetString(PyExc_TypeError, "a norm must be a tuple");
    return 0;
  }
  if (!PyArg_ParseTuple(object, "KKfi", &weight, &bias, &norm->epsilon, &kind))
    return 0;
  if (kind < 0 || kind >= NORMS) {
    PyErr_Format(PyExc_ValueError, "`0 <= kind < %d` must hold for a norm, but got %d", NORMS, kind);
    return 0;
  }
  norm->kind = (enum norm_kind)kind;
  norm->weight = (const float *)weight;
  norm->bias = (const float *)bias;
  return 1;
}

/* relative: (keys, queries, buckets, index, reach), or None; keys, queries and index are addresses */
static int to_relative(PyObject *object, void *out)
{
  struct relative *relative = out;
  unsigned long long keys, queries, index;
  Py_ssize_t buckets, reach;
  if (object == Py_None)
    return 1;
  if (!PyTuple_Check(object)) {
    PyErr_SetString(PyExc_TypeError, "relative must be a tuple or None");
    return 0;
  }
  if (!PyArg_ParseTuple(object, "KKnKn", &keys, &queries, &buckets, &index, &reach))
    return 0;
  if ((keys == 0 && queries == 0) || index == 0 || buckets <= 0 || reach < 0) {
    refuse(
        "addresses of keys or queries and of index that are not 0, buckets above 0 and a reach of 0 or more");
    return 0;
  }
  *relative = (struct relative){.keys = (const uint32_t *)keys,
                                .queries = (const uint32_t *)queries,
                                .buckets = (size_t)buckets,
                                .index = (const int32_t *)index,
                                .reach = (size_t)reach};
  return 1;
}

typedef struct {
  PyObject_HEAD struct layer layer;
} LayerObject;

static int is_shaped(const struct matrix *matrix, size_t columns, size_t in_features)
{
  return matrix->columns == columns && matrix->words == kind_words(matrix->kind, in_features);
}

/* Whether each part takes what the one before it gives. */
static int fits(const struct layer *layer)
{
  const size_t hidden = layer->hidden, width = layer->heads * layer->head_size, wide = layer->up.columns;
  return is_shaped(&layer->query, width, hidden) && is_shaped(&layer->key, width, hidden) &&
         is_shaped(&layer->value, width, hidden) && is_shaped(&layer->output, hidden, width) && wide > 0 &&
         (layer->gate.columns == 0 || is_shaped(&layer->gate, wide, hidden)) &&
         is_shaped(&layer->up, wide, hidden) && is_shaped(&layer->down, hidden, wide) &&
         layer->query.exact == NULL && layer->key.exact == NULL && layer->value.exact == NULL &&
         layer->gate.exact == NULL && layer->up.exact == NULL && layer->query.kind == layer->key.kind &&
         layer->query.kind == layer->value.kind &&
         (layer->gate.columns == 0 || layer->gate.kind == layer->up.kind) &&
         layer->head_size % kind_numbers(layer->attention) == 0;
}

/* Layer(hidden, heads, head_size, query, key, value, output, gate, up, down, attention_norm, output_norm,
 *       norm_first, activation, attention_kind, scale) */
static PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
  if (kwargs != NULL && PyDict_Size(kwargs) > 0)
    return PyErr_Format(PyExc_TypeError, "Layer takes no keyword arguments");
  struct layer layer;
  Py_ssize_t hidden, heads, head_size;
  int activation, attention;
  if (!PyArg_ParseTuple(args, "nnnO&O&O&O&O&O&O&O&O&piif", &hidden, &heads, &head_size, to_matrix,
                        &layer.query, to_matrix, &layer.key, to_matrix, &layer.value, to_matrix,
                        &layer.output, to_matrix, &layer.gate, to_matrix, &layer.up, to_matrix, &layer.down,
                        to_norm, &layer.attention_norm, to_norm, &layer.output_norm, &layer.norm_first,
                        &activation, &attention, &layer.scale))
    return NULL;
  if (hidden <= 0 || heads <= 0 || head_size <= 0 || activation < 0 || activation >= ACTIVATIONS ||
      (attention != KIND_F32 && !operand_is_bf16((enum kind)attention)))
    return PyErr_Format(PyExc_ValueError,
                        "sizes above 0, `0 <= activation < %d` and attention in %s must hold, but got (%zd, "
                        "%zd, %zd), %d and %d",
                        ACTIVATIONS, DOT_BF16 ? "0, 1" : "0", hidden, heads, head_size, activation,
                        attention);
  layer.hidden = (size_t)hidden;
  layer.heads = (size_t)heads;
  layer.head_size = (size_t)head_size;
  layer.activation = (enum activation)activation;
  layer.attention = (enum kind)attention;
  if (!fits(&layer))
    return refuse(
        "shapes and kinds of the matrices that fit each other and the sizes, and whole words in a head,");
  allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  LayerObject *self = (LayerObject *)allocate(type, 0);
  if (self != NULL)
    self->layer = layer;
  return (PyObject *)self;
}

static void layer_dealloc(PyObject *object)
{
  PyTypeObject *type = Py_TYPE(object);
  freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
  free_object(object);
  Py_DECREF(type);
}

enum { MOST_LAYERS = 1024 };

/* The layers of a tuple of Layer, which must be of one hidden size; their number, or -1 with an error set. */
static Py_ssize_t take_layers(PyObject *module, PyObject *tuple, const struct layer **layers)
{
  PyTypeObject *type = *(PyTypeObject **)PyModule_GetState(module);
  const Py_ssize_t count = PyTuple_Size(tuple);
  if (count < 1 || count > MOST_LAYERS) {
    if (!PyErr_Occurred())
      PyErr_Format(PyExc_ValueError, "from 1 to %d layers can run, but got %zd", MOST_LAYERS, count);
    return -1;
  }
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *object = PyTuple_GetItem(tuple, i);
    if (!PyObject_TypeCheck(object, type)) {
      PyErr_SetString(PyExc_TypeError, "the layers must be a tuple of Layer");
      return -1;
    }
    layers[i] = &((LayerObject *)object)->layer;
    if (layers[i]->hidden != layers[0]->hidden) {
      PyErr_SetString(PyExc_ValueError, "layers that follow one another must have the same hidden size");
      return -1;
    }
  }
  return count;
}

/* run_layers(layers, threads, input, output, rows, sequences, first, length, skipped, seen, window, bias,
 *            bias_head, bias_query, cosines, sines, angles, relative, padding_sees_all) -> None; a window
 * below 0 is none */
static PyObject *run_layers_py(PyObject *module, PyObject *args)
{
  PyObject *tuple;
  int threads;
  unsigned long long input, output, first, length, skipped, seen, bias, cosines, sines;
  Py_ssize_t rows, sequences, window, bias_head, bias_query, angles;
  struct relative relative = {0};
  int padding_sees_all;
  if (!PyArg_ParseTuple(args, "O!iKKnnKKKKnKnnKKnO&p", &PyTuple_Type, &tuple, &threads, &input, &output,
                        &rows, &sequences, &first, &length, &skipped, &seen, &window, &bias, &bias_head,
                        &bias_query, &cosines, &sines, &angles, to_relative, &relative, &padding_sees_all))
    return NULL;
  const struct layer *layers[MOST_LAYERS];
  const Py_ssize_t count = take_layers(module, tuple, layers);
  if (count < 0)
    return NULL;
  if (rows < 0 || sequences < 0 || bias_head < 0 || bias_query < 0 || angles < 0)
    return refuse("sizes of 0 or more");
  if ((rows > 0 && (input == 0 || output == 0)) ||
      (sequences > 0 && (rows == 0 || first == 0 || length == 0)) || (skipped == 0) != (seen == 0) ||
      (cosines == 0) != (sines == 0) || (cosines != 0 && angles == 0))
    return refuse("addresses that are not 0, skipped and seen, or cosines, sines and angles together,");
  const struct call call = {.input = (const float *)input,
                            .output = (float *)output,
                            .rows = (size_t)rows,
                            .sequences = (size_t)sequences,
                            .first = (const int32_t *)first,
                            .length = (const int32_t *)length,
                            .skipped = (const int32_t *)skipped,
                            .seen = (const int32_t *)seen,
                            .padding_sees_all = padding_sees_all,
                            .window = window < 0 ? SIZE_MAX : (size_t)window,
                            .bias = (const float *)bias,
                            .bias_head = (size_t)bias_head,
                            .bias_query = (size_t)bias_query,
                            .cosines = (const float *)cosines,
                            .sines = (const float *)sines,
                            .angles = (size_t)angles,
                            .relative = relative};
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = layers_run(layers, (size_t)count, &call, threads > 0 ? (unsigned)threads : 1);
  Py_END_ALLOW_THREADS;
  return no_memory(error);
}

/* linear(threads, matrix, activation, input, in_features, output, rows) -> None */
static PyObject *linear_py(PyObject *module, PyObject *args)
{
  (void)module;
  int threads;
  struct matrix matrix;
  int activation;
  unsigned long long input, output;
  Py_ssize_t in_features, rows;
  if (!PyArg_ParseTuple(args, "iO&iKnKn", &threads, to_matrix, &matrix, &activation, &input, &in_features,
                        &output, &rows))
    return NULL;
  if (activation < 0 || activation >= ACTIVATIONS)
    return PyErr_Format(PyExc_ValueError, "`0 <= activation < %d` must hold, but got %d", ACTIVATIONS,
                        activation);
  if (rows < 0 || in_features <= 0 || kind_words(matrix.kind, (size_t)in_features) != matrix.words ||
      (rows > 0 && (input == 0 || output == 0)))
    return refuse("rows of 0 or more, in_features of the matrix' words, and addresses that are not 0");
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = linear_run(&matrix, (enum activation)activation, (const float *)input, (size_t)in_features,
                     (float *)output, (size_t)rows, threads > 0 ? (unsigned)threads : 1);
  Py_END_ALLOW_THREADS;
  return no_memory(error);
}

enum { MOST_LOOKUPS = 8 };

/* Lookups of a tuple of (table, table_rows, ids, count); tables and ids are addresses. Their number, or -1
 * with an error set. */
static Py_ssize_t take_lookups(PyObject *tuple, struct lookup *lookups)
{
  const Py_ssize_t count = PyTuple_Size(tuple);
  if (count < 1 || count > MOST_LOOKUPS) {
    PyErr_Format(PyExc_ValueError, "there can be from 1 to %d lookups, but got %zd", MOST_LOOKUPS, count);
    return -1;
  }
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *object = PyTuple_GetItem(tuple, i);
    unsigned long long table, ids;
    Py_ssize_t table_rows, id_count;
    if (!PyTuple_Check(object)) {
      PyErr_SetString(PyExc_TypeError, "a lookup must be a tuple");
      return -1;
    }
    if (!PyArg_ParseTuple(object, "KnKn", &table, &table_rows, &ids, &id_count))
      return -1;
    if (table == 0 || ids == 0 || table_rows <= 0 || id_count <= 0) {
      refuse("addresses that are not 0 and sizes above 0");
      return -1;
    }
    lookups[i] =
        (struct lookup){(const float *)table, (size_t)table_rows, (const int64_t *)ids, (size_t)id_count};
  }
  return count;
}

/* embed(threads, lookups, norm, columns, output, rows) -> whether every id is a row of its table; if not
 * there is no output */
static PyObject *embed_py(PyObject *module, PyObject *args)
{
  (void)module;
  int threads;
  PyObject *tuple;
  struct norm norm;
  Py_ssize_t columns, rows;
  unsigned long long output;
  if (!PyArg_ParseTuple(args, "iO!O&nKn", &threads, &PyTuple_Type, &tuple, to_norm, &norm, &columns, &output,
                        &rows))
    return NULL;
  struct lookup lookups[MOST_LOOKUPS];
  const Py_ssize_t count = take_lookups(tuple, lookups);
  if (count < 0)
    return NULL;
  if (columns <= 0 || rows < 0 || (rows > 0 && output == 0))
    return refuse("columns above 0, rows of 0 or more, and an address that is not 0");
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = embed_run(lookups, (size_t)count, &norm, (size_t)columns, (float *)output, (size_t)rows,
                    threads > 0 ? (unsigned)threads : 1);
  Py_END_ALLOW_THREADS;
  return PyBool_FromLong(error != EDOM);
}

/* count(address, size, value) -> how many of these 64-bit integers are `value` */
static PyObject *count_py(PyObject *module, PyObject *args)
{
  (void)module;
  unsigned long long address;
  Py_ssize_t size, found = 0;
  long long value;
  if (!PyArg_ParseTuple(args, "KnL", &address, &size, &value))
    return NULL;
  if (size < 0 || (size > 0 && address == 0))
    return refuse("a size of 0 or more, and an address that is not 0");
  for (Py_ssize_t i = 0; i < size; i++)
    found += ((const int64_t *)(uintptr_t)address)[i] == value;
  return PyLong_FromSsize_t(found);
}

/* use_threads(address of torch_parallel_for; 0: one thread) -> None */
static PyObject *use_threads(PyObject *module, PyObject *address)
{
  (void)module;
  const unsigned long long function = PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred())
    return NULL;
  team_use((parallel_for)(uintptr_t)function);
  Py_RETURN_NONE;
}

/* use_cache(bytes of a core's second-level cache) -> None. Not while kernels run. */
static PyObject *use_cache(PyObject *module, PyObject *bytes)
{
  (void)module;
  const size_t size = PyLong_AsSize_t(bytes);
  if (PyErr_Occurred())
    return NULL;
  machine.block_bytes = size / 4 * 3;
  Py_RETURN_NONE;
}

static PyType_Slot layer_slots[] = {{Py_tp_new, layer_new}, {Py_tp_dealloc, layer_dealloc}, {0, NULL}};

static PyType_Spec layer_spec = {.name = "hfaccel._kernels.Layer",
                                 .basicsize = sizeof(LayerObject),
                                 .flags = Py_TPFLAGS_DEFAULT,
                                 .slots = layer_slots};

static PyMethodDef functions[] = {{"run_layers", run_layers_py, METH_VARARGS, NULL},
                                  {"linear", linear_py, METH_VARARGS, NULL},
                                  {"embed", embed_py, METH_VARARGS, NULL},
                                  {"count", count_py, METH_VARARGS, NULL},
                                  {"use_threads", use_threads, METH_O, NULL},
                                  {"use_cache", use_cache, METH_O, NULL},
                                  {NULL, NULL, 0, NULL}};

/* The state is a reference to the type Layer. */
static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "_kernels",
                                        .m_size = sizeof(PyObject *),
                                        .m_methods = functions};

/* PANEL, and whether an instruction multiplies bfloat16 and int8: what packed weights and layers depend on.
 */
static int add_constants(PyObject *module)
{
  return PyModule_AddIntMacro(module, PANEL) < 0 || PyModule_AddIntMacro(module, DOT_BF16) < 0 ||
         PyModule_AddIntMacro(module, DOT_I8) < 0;
}

PyObject *module_create(void)
{
  PyObject *module = PyModule_Create(&definition);
  PyObject *type = PyType_FromSpec(&layer_spec);
  if (module == NULL || type == NULL || PyModule_AddObjectRef(module, "Layer", type) < 0 ||
      add_constants(module)) {
    Py_XDECREF(module);
    Py_XDECREF(type);
    return NULL;
  }
  *(PyObject **)PyModule_GetState(module) = type; /* kept for the life of the process, as the module is */
  return module;
}
