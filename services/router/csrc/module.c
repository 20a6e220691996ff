/* baton.router.native: `BlockTable`, as `block_table.py` describes it, a prompt's hashes, and its placement. Everything
 * keeps the interpreter's lock: most takes microseconds, and whoever has many blocks to store does so a few thousand at
 * a time. */
#include "placing.h"
#include "prompt_hashes.h"
#include "table.h"

typedef struct {
    PyObject_HEAD
    Table table;
} Object;

#define TABLE(self) (&((Object *)(self))->table)

static PyObject *make(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    unsigned long long max_pairs, key[2];
    if (kwargs && PyDict_Size(kwargs)) return PyErr_Format(PyExc_TypeError, "BlockTable takes no keywords");
    if (!PyArg_ParseTuple(args, "KKK", &max_pairs, key, key + 1)) return NULL;
    if (max_pairs < 1 || max_pairs >= UINT32_MAX) return PyErr_Format(PyExc_ValueError, "max_pairs is %llu", max_pairs);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (!self) return NULL;
    uint64_t keys[2] = {key[0], key[1]};
    if (!table_init(TABLE(self), (uint32_t)max_pairs, keys)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return self;
}

static void dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    table_free(TABLE(self));
    release(self);
    Py_DECREF(type);
}

/* The slot and the packed hashes that most methods begin with. */
static int read_slot(PyObject *value, uint32_t *slot) {
    unsigned long number = PyLong_AsUnsignedLong(value);
    if (number == (unsigned long)-1 && PyErr_Occurred()) return 0;
    if (number >= MAX_SLOTS) {
        PyErr_Format(PyExc_ValueError, "slot %lu: %d is the limit", number, MAX_SLOTS);
        return 0;
    }
    *slot = (uint32_t)number;
    return 1;
}

static int read_hashes(PyObject *value, const uint8_t **hashes, size_t *count) {
    char *bytes;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(value, &bytes, &length)) return 0;
    if (length % HASH_BYTES) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no hashes of %d", length, HASH_BYTES);
        return 0;
    }
    *hashes = (const uint8_t *)bytes;
    *count = length / HASH_BYTES;
    return 1;
}

static int read_both(PyObject *const *args, Py_ssize_t given, uint32_t *slot, const uint8_t **hashes, size_t *count) {
    if (given != 2) {
        PyErr_Format(PyExc_TypeError, "%zd arguments, not a slot and hashes", given);
        return 0;
    }
    return read_slot(args[0], slot) && read_hashes(args[1], hashes, count);
}

static PyObject *claim(PyObject *self, PyObject *const *args, Py_ssize_t given, enum Claim kind) {
    uint32_t slot;
    const uint8_t *hashes;
    size_t count;
    if (!read_both(args, given, &slot, &hashes, &count)) return NULL;
    return table_claim(TABLE(self), slot, hashes, count, kind) ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *disclaim(PyObject *self, PyObject *const *args, Py_ssize_t given, enum Claim kind) {
    uint32_t slot;
    const uint8_t *hashes;
    size_t count;
    if (!read_both(args, given, &slot, &hashes, &count)) return NULL;
    table_disclaim(TABLE(self), slot, hashes, count, kind);
    return Py_NewRef(Py_None);
}

static PyObject *store(PyObject *self, PyObject *const *args, Py_ssize_t given) { return claim(self, args, given, STORED); }
static PyObject *expect(PyObject *self, PyObject *const *args, Py_ssize_t given) { return claim(self, args, given, EXPECTED); }
static PyObject *remove_(PyObject *self, PyObject *const *args, Py_ssize_t given) { return disclaim(self, args, given, STORED); }
static PyObject *settle(PyObject *self, PyObject *const *args, Py_ssize_t given) { return disclaim(self, args, given, EXPECTED); }

static PyObject *shrink(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    uint32_t slot;
    unsigned long count;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "%zd arguments, not a slot and a count", given);
    if (!read_slot(args[0], &slot)) return NULL;
    count = PyLong_AsUnsignedLong(args[1]);
    if (count == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    table_shrink(TABLE(self), slot, count < UINT32_MAX ? (uint32_t)count : UINT32_MAX);
    return Py_NewRef(Py_None);
}

static PyObject *match(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    uint32_t slot;
    const uint8_t *hashes;
    size_t count;
    if (!read_both(args, given, &slot, &hashes, &count)) return NULL;
    return PyLong_FromSize_t(table_match(TABLE(self), slot, hashes, count));
}

static PyObject *match_all(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer leading;
    const uint8_t *hashes;
    size_t count, slots;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "%zd arguments, not hashes and int32 numbers", given);
    if (!read_hashes(args[0], &hashes, &count) || PyObject_GetBuffer(args[1], &leading, PyBUF_WRITABLE)) return NULL;
    slots = leading.len / sizeof(int32_t);
    if (slots >= TABLE(self)->slots) table_match_all(TABLE(self), hashes, count, leading.buf, slots);
    else PyErr_Format(PyExc_ValueError, "room for %zu workers of %u", slots, TABLE(self)->slots);
    PyBuffer_Release(&leading);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *stored(PyObject *self, PyObject *value) {
    uint32_t slot;
    return read_slot(value, &slot) ? PyLong_FromUnsignedLong(TABLE(self)->workers[slot].stored) : NULL;
}

static PyObject *stats(PyObject *self, PyObject *unused) {
    const Table *t = TABLE(self);
    (void)unused;
    return Py_BuildValue("(IIKK)", t->pairs.used, t->blocks.used, (unsigned long long)table_bytes(t),
                         (unsigned long long)t->evicted_blocks);
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL

static PyMethodDef methods[] = {
    {"store", FAST(store)},   {"remove", FAST(remove_)}, {"expect", FAST(expect)},       {"settle", FAST(settle)},
    {"shrink", FAST(shrink)}, {"match", FAST(match)},    {"match_all", FAST(match_all)}, {"stored", stored, METH_O, NULL},
    {"stats", stats, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make}, {Py_tp_dealloc, dealloc}, {Py_tp_methods, methods}, {0, NULL},
};

static PyType_Spec spec = {"baton.router.native.BlockTable", sizeof(Object), 0, Py_TPFLAGS_DEFAULT, slots};

static PyMethodDef functions[] = {
    {"hash_blocks", FAST(hash_blocks)}, {"hash_blocks_portably", FAST(hash_blocks_portably)},
    {"write_cached", FAST(write_cached)}, {"choose_predicted", FAST(choose_predicted)}, {"predict", FAST(predict)},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "baton.router.native",
                                        .m_doc = "A prompt's blocks, who holds them, where it goes.", .m_size = 0,
                                        .m_methods = functions};

PyMODINIT_FUNC PyInit_native(void) {
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&spec);
    if (module && type && !PyModule_AddObjectRef(module, "BlockTable", type)) {
        Py_DECREF(type);
        return module;
    }
    Py_XDECREF(type);
    Py_XDECREF(module);
    return NULL;
}
