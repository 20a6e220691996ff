#include "placing.h"

#include <math.h>
#include <stdlib.h>

#include "choice.h"

enum { WRITE_CACHED_COLUMNS = 4 };

/* 0 with an error set. */
static int write_whole_blocks(const Py_buffer *columns) {
    double *cached_tokens = columns[0].buf;
    const double *block_tokens = columns[1].buf;
    const int32_t *matched_tokens = columns[2].buf;
    const int64_t *slots = columns[3].buf;
    size_t count = (size_t)columns[3].len / sizeof *slots, known = (size_t)columns[2].len / sizeof *matched_tokens;
    if ((size_t)columns[0].len != count * sizeof(double) || (size_t)columns[1].len != count * sizeof(double)) {
        PyErr_Format(PyExc_ValueError, "columns of %zd and %zd bytes for %zu workers", columns[0].len, columns[1].len, count);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        if ((uint64_t)slots[i] >= known) {
            PyErr_Format(PyExc_IndexError, "slot %lld of %zu", (long long)slots[i], known);
            return 0;
        }
        double tokens = matched_tokens[slots[i]];
        cached_tokens[i] = floor(tokens / block_tokens[i]) * block_tokens[i];
    }
    return 1;
}

PyObject *write_cached(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    Py_buffer columns[WRITE_CACHED_COLUMNS];
    int held = 0, is_done = 0;
    (void)module;
    if (given != WRITE_CACHED_COLUMNS) return PyErr_Format(PyExc_TypeError, "%zd arguments, not 4 columns", given);
    while (held < WRITE_CACHED_COLUMNS && !PyObject_GetBuffer(args[held], columns + held, held ? PyBUF_SIMPLE : PyBUF_WRITABLE))
        held++;
    if (held == WRITE_CACHED_COLUMNS) is_done = write_whole_blocks(columns);
    while (held) PyBuffer_Release(columns + --held);
    return is_done ? Py_NewRef(Py_None) : NULL;
}

/* A role's columns as they were handed over; `release` is due in any case. */
typedef struct {
    Py_buffer figures, keys;
    Pool pool;
} Columns;

static void release(Columns *c) {
    if (c->figures.obj) PyBuffer_Release(&c->figures);
    if (c->keys.obj) PyBuffer_Release(&c->keys);
}

/* 0 with an error set. */
static int read_columns(PyObject *figures, PyObject *keys, Columns *c) {
    *c = (Columns){0};
    if (PyObject_GetBuffer(figures, &c->figures, PyBUF_SIMPLE) || PyObject_GetBuffer(keys, &c->keys, PyBUF_SIMPLE)) return 0;
    size_t count = (size_t)c->keys.len / sizeof(uint64_t);
    if ((size_t)c->figures.len != FIGURES * count * sizeof(double)) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no %d figures of %zu workers", c->figures.len, (int)FIGURES, count);
        return 0;
    }
    c->pool = (Pool){c->figures.buf, c->keys.buf, count};
    return 1;
}

static int read_wanted(PyObject *const *args, Wanted *w) {
    *w = (Wanted){PyFloat_AsDouble(args[0]), PyFloat_AsDouble(args[1]), PyFloat_AsDouble(args[2])};
    return !PyErr_Occurred();
}

static int read_demand(PyObject *const *args, Demand *demand) {
    *demand = (Demand){.has_tpot = args[6] != Py_None, .has_session = args[7] != Py_None};
    long mode = PyLong_AsLong(args[3]);
    demand->mode = (enum Mode)mode;
    demand->waited_s = PyFloat_AsDouble(args[4]);
    demand->ttft_s = PyFloat_AsDouble(args[5]);
    demand->ordinal = PyLong_AsUnsignedLongLong(args[8]);
    if (demand->has_tpot) demand->tpot_s = PyFloat_AsDouble(args[6]);
    if (demand->has_session) demand->session = PyLong_AsUnsignedLongLong(args[7]);
    if (PyErr_Occurred() || !read_wanted(args, &demand->wanted)) return 0;
    if (mode < AUTO || mode > NEVER) PyErr_Format(PyExc_ValueError, "mode %ld is none", mode);
    return !PyErr_Occurred();
}

static PyObject *chosen(const Pool *prefill, const Pool *decode, const Demand *demand) {
    if (!decode->count) return PyErr_Format(PyExc_ValueError, "there is no decode worker to choose");
    size_t most = prefill->count > decode->count ? prefill->count : decode->count;
    double *costs_s = malloc(2 * most * sizeof *costs_s);
    if (!costs_s) return PyErr_NoMemory();
    Choice choice = choose(prefill, decode, demand, costs_s, costs_s + most);
    free(costs_s);
    return Py_BuildValue("(nn)", (Py_ssize_t)choice.prefill, (Py_ssize_t)choice.decode);
}

PyObject *choose_predicted(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    Columns prefill = {0}, decode = {0};
    Demand demand;
    PyObject *result = NULL;
    (void)module;
    if (given != 13) return PyErr_Format(PyExc_TypeError, "%zd arguments, not two pools and a demand", given);
    if (read_columns(args[0], args[1], &prefill) && read_columns(args[2], args[3], &decode) && read_demand(args + 4, &demand))
        result = chosen(&prefill.pool, &decode.pool, &demand);
    release(&prefill);
    release(&decode);
    return result;
}

/* Of one worker each; `p` is NULL for a prompt that `d` computes itself. */
static PyObject *predicted(const Pool *p, size_t i, const Pool *d, size_t j, const Wanted *w) {
    double prompt_s = p ? prefill_s(p, i, w) : prefill_s(d, j, w);
    double tokens = p ? prefill_tokens(p, i, w) : prefill_tokens(d, j, w);
    return Py_BuildValue("(Lddddd)", (long long)tokens, p ? turn_s(p, i, prompt_s) : queue_s(d, j), prompt_s,
                         reserve_s(d, j, w), p ? handoff_s(p, i, d, j, w, prompt_s) : 0.0, step_s(d, j, w));
}

/* args: columns, keys and a worker's place in them. 0 with an error set. */
static int read_worker(PyObject *const *args, Columns *c, Py_ssize_t *index) {
    *index = PyLong_AsSsize_t(args[2]);
    if ((*index == -1 && PyErr_Occurred()) || !read_columns(args[0], args[1], c)) return 0;
    if (*index < LOCAL || *index >= (Py_ssize_t)c->pool.count)
        PyErr_Format(PyExc_IndexError, "worker %zd of %zu", *index, c->pool.count);
    return !PyErr_Occurred();
}

PyObject *predict(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    Columns prefill = {0}, decode = {0};
    Py_ssize_t i, j;
    Wanted wanted;
    PyObject *result = NULL;
    (void)module;
    if (given != 9) return PyErr_Format(PyExc_TypeError, "%zd arguments, not two workers and what is wanted", given);
    if (read_worker(args, &prefill, &i) && read_worker(args + 3, &decode, &j) && read_wanted(args + 6, &wanted)) {
        if (j == LOCAL) PyErr_SetString(PyExc_IndexError, "a prediction needs a decode worker");
        else result = predicted(i == LOCAL ? NULL : &prefill.pool, (size_t)i, &decode.pool, (size_t)j, &wanted);
    }
    release(&prefill);
    release(&decode);
    return result;
}
