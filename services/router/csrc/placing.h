/* Placement over the columns of `candidates.Candidates`, for Python. */
#pragma once
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

/* Methods of the module; what they take and give is in `native.pyi`. */
PyObject *write_cached(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *choose_predicted(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *predict(PyObject *module, PyObject *const *args, Py_ssize_t given);
