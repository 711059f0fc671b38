/* Declarations shared by the files of this folder: the interface between Python and the kernels of one
 * instruction set.
 *
 * Python makes objects, each of which holds one struct of the kernels that is checked when the object is
 * made, and passes them to the functions that compute. Objects and arguments hold addresses and sizes; the
 * caller keeps the memory alive and has checked types and shapes. What lies at an address cannot be checked.
 */
#pragma once
#include <Python.h>

#include "layer.h"

enum type { MATRIX, NORM, LAYER, SEQUENCES, BIAS, ROTARY, RELATIVE, PAST, EMBEDDING, EXPERTS, TYPES };

/* Makes the types and adds them to the module; -1 with an exception. */
int add_types(PyObject *module);

/* The struct that an object of this type holds; NULL with a TypeError for any other object. */
const void *content_of(PyObject *object, enum type type);

/* Each fills its struct from the arguments of the object's constructor: 1, or 0 with an exception. */
int read_matrix(PyObject *args, void *content);
int read_norm(PyObject *args, void *content);
int read_layer(PyObject *args, void *content);
int read_sequences(PyObject *args, void *content);
int read_bias(PyObject *args, void *content);
int read_rotary(PyObject *args, void *content);
int read_relative(PyObject *args, void *content);
int read_past(PyObject *args, void *content);
int read_embedding(PyObject *args, void *content);
int read_experts(PyObject *args, void *content);

/* Converters for PyArg_ParseTuple ("O&"): a pointer, a size_t, an unsigned above 0, an enum, and the structs
 * that objects hold. A converter ending in _or_none leaves the struct unchanged for None. */
int to_address(PyObject *object, void *out);
int to_size(PyObject *object, void *out);
int to_threads(PyObject *object, void *out);
int to_number(PyObject *object, void *out);
int to_activation(PyObject *object, void *out);
int to_matrix(PyObject *object, void *out);
int to_matrix_or_none(PyObject *object, void *out);
int to_norm(PyObject *object, void *out);
int to_norm_or_none(PyObject *object, void *out);
int to_sequences(PyObject *object, void *out);
int to_bias_or_none(PyObject *object, void *out);
int to_rotary_or_none(PyObject *object, void *out);
int to_relative_or_none(PyObject *object, void *out);
int to_experts_or_none(PyObject *object, void *out);
int to_past_or_none(PyObject *object, void *out);

/* 1, or 0 with a ValueError that names the rule. */
int must_hold(int holds, const char *rule);

/* None; MemoryError if a kernel returned ENOMEM. */
PyObject *done(int error);

PyObject *run_layers(PyObject *module, PyObject *args);
PyObject *linear(PyObject *module, PyObject *args);
PyObject *embed(PyObject *module, PyObject *args);
PyObject *experts(PyObject *module, PyObject *args);
PyObject *count(PyObject *module, PyObject *args);
