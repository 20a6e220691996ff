/* The hashes of a prompt's full blocks: each SHA-256, cut to HASH_BYTES, of the one before it and the block's tokens. */
#pragma once
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

/* Methods of the module; what they take and give is in `native.pyi`. */
PyObject *hash_blocks(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *hash_blocks_portably(PyObject *module, PyObject *const *args, Py_ssize_t given);
