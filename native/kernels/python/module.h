/* The extension module of one instruction set. */
#pragma once
#include <Python.h>

PyObject *module_create(void);
