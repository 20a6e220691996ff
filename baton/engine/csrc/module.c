/* baton.engine.native: kernels for a CPU, called with plain numbers and addresses; the callers in Python (`native.pyi`
 * names them) know shapes and dtypes and have checked them. None holds the interpreter's lock while it computes. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "attention.h"

_Static_assert(sizeof(long long) == 8, "numbers are passed as eight bytes");

/* The `count` integers of `args`, in order, into `fields`. */
static int read_fields(PyObject *const *args, Py_ssize_t given, Py_ssize_t count, int64_t *fields) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", count, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        fields[i] = PyLong_AsLongLong(args[i]);
        if (fields[i] == -1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

#define READ(args, given, value) read_fields(args, given, sizeof(value) / 8, (int64_t *)&(value))

static PyObject *py_attend(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    Attention a;
    int is_done;
    (void)module;
    if (!READ(args, given, a)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    is_done = attend(&a);
    Py_END_ALLOW_THREADS
    return is_done ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyMethodDef methods[] = {
    {"attend", (PyCFunction)(void (*)(void))py_attend, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "baton.engine.native",
                                        .m_doc = "Kernels for a CPU.", .m_methods = methods};

PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&definition); }
