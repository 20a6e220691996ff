/* baton.engine.native: kernels for a CPU, called with plain numbers and addresses; the callers in Python (`native.pyi`
 * names them) know shapes and dtypes and have checked them. None holds the interpreter's lock while it computes. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "attention.h"
#include "layers.h"
#include "linear.h"
#include "pointwise.h"
#include "products.h"

_Static_assert(sizeof(long long) == 8, "numbers are passed as eight bytes");

/* The `count` integers of `args`, in order, into `fields`. */
static int read_fields(PyObject *const *args, Py_ssize_t given, Py_ssize_t count, int64_t *fields) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", given, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        fields[i] = PyLong_AsLongLong(args[i]);
        if (fields[i] == -1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

#define READ(args, given, value) read_fields(args, given, sizeof(value) / 8, (int64_t *)&(value))

/* A function of Python for one of C that takes a structure of numbers; `call` is 0 where memory ran out. */
#define EXPOSE(name, Fields, call)                                                       \
    static PyObject *name(PyObject *module, PyObject *const *args, Py_ssize_t given) {   \
        Fields fields;                                                                   \
        int is_done;                                                                     \
        (void)module;                                                                    \
        if (!READ(args, given, fields)) return NULL;                                     \
        Py_BEGIN_ALLOW_THREADS                                                           \
        is_done = (call);                                                                \
        Py_END_ALLOW_THREADS                                                             \
        return is_done ? Py_NewRef(Py_None) : PyErr_NoMemory();                          \
    }

EXPOSE(py_run_layers, Pass, run_layers(&fields))
EXPOSE(py_attend, Attention, attend(&fields))
EXPOSE(py_pack, Packing, (pack(&fields), 1))
EXPOSE(py_multiply, Linear, (multiply(&fields), 1))
EXPOSE(py_norm, Norm, (norm(&fields), 1))
EXPOSE(py_rotate, Rotation, (rotate(&fields), 1))
EXPOSE(py_find_largest, Rows, (find_largest(&fields), 1))

static PyObject *py_has_bfloat16_products(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyBool_FromLong(has_bfloat16_products());
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL

static PyMethodDef methods[] = {
    {"run_layers", FAST(py_run_layers)},
    {"attend", FAST(py_attend)},
    {"pack", FAST(py_pack)},
    {"multiply", FAST(py_multiply)},
    {"norm", FAST(py_norm)},
    {"rotate", FAST(py_rotate)},
    {"find_largest", FAST(py_find_largest)},
    {"has_bfloat16_products", py_has_bfloat16_products, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "baton.engine.native",
                                        .m_doc = "Kernels for a CPU.", .m_methods = methods};

PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&definition); }
