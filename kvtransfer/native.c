/* Moves rows between buffers and digests them on the way, without the interpreter's lock.
 *
 * A row is a block, or a part of one, of a multiple of 64 bytes. A digest is the XXH3-64, with seed 0, of `chunk_rows`
 * rows one after the other (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH3 Algorithm", inputs
 * above 240 bytes). Copying and digesting share one read of the source. What goes to a pool is written past the caches:
 * a pool is far larger than they are, and a plain store would read each line first.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__)
#include <emmintrin.h>
#define ON_WIDEST_UNITS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define ON_WIDEST_UNITS
#endif

enum { STRIPE_BYTES = 64, BLOCK_STRIPES = 16, LINE_BYTES = 64, PREFETCH_BYTES = 1024, MIN_DIGEST_BYTES = 256 };

#define PRIME32_1 0x9E3779B1ULL
#define PRIME32_2 0x85EBCA77ULL
#define PRIME32_3 0xC2B2AE3DULL
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define PRIME_MX1 0x165667919E3779F9ULL

/* The specification's default secret. */
static const uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

/* One stripe, or the eight accumulators: the compiler makes of it what the processor has. */
typedef uint64_t Lanes __attribute__((vector_size(STRIPE_BYTES)));

INLINE uint64_t word(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

INLINE Lanes lanes_at(const uint8_t *at) {
    Lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

INLINE Lanes accumulate(Lanes sums, Lanes stripe, const uint8_t *secret) {
    const Lanes neighbours = {1, 0, 3, 2, 5, 4, 7, 6};
    Lanes keyed = stripe ^ lanes_at(secret);
    return sums + __builtin_shuffle(stripe, neighbours) + (keyed & 0xFFFFFFFF) * (keyed >> 32);
}

INLINE Lanes scramble(Lanes sums) {
    return (sums ^ (sums >> 47) ^ lanes_at(SECRET + sizeof SECRET - STRIPE_BYTES)) * PRIME32_1;
}

static uint64_t folded_product(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t merge(const uint64_t *sums, uint64_t bytes) {
    const uint8_t *secret = SECRET + 11;
    uint64_t result = bytes * PRIME64_1;
    for (int i = 0; i < 8; i += 2)
        result += folded_product(sums[i] ^ word(secret + 8 * i), sums[i + 1] ^ word(secret + 8 * i + 8));
    result = (result ^ (result >> 37)) * PRIME_MX1;
    return result ^ (result >> 32);
}

INLINE void store(uint8_t *target, Lanes stripe, int past_caches) {
#if defined(__x86_64__)
    if (past_caches) {
        __m128i parts[4];
        memcpy(parts, &stripe, sizeof parts);
        for (int i = 0; i < 4; i++) _mm_stream_si128((__m128i *)target + i, parts[i]);
        return;
    }
#endif
    memcpy(target, &stripe, STRIPE_BYTES);
}

/* Rows of one buffer: the i-th is at ids[i], or at i where there are no ids. */
typedef struct {
    uint8_t *bytes;
    const int64_t *ids;
} Rows;

INLINE uint8_t *row_at(Rows rows, int64_t index, int64_t row_bytes) {
    return rows.bytes + (rows.ids ? rows.ids[index] : index) * row_bytes;
}

/* Rows lie anywhere, so the processor does not foresee the next one. */
INLINE void prefetch_row(Rows rows, int64_t index, int64_t row_bytes) {
    const uint8_t *next = row_at(rows, index, row_bytes);
    int64_t ahead = row_bytes < PREFETCH_BYTES ? row_bytes : PREFETCH_BYTES;
    for (int64_t at = 0; at < ahead; at += LINE_BYTES) __builtin_prefetch(next + at);
}

/* The digest of rows first to last - 1 of `source`, which are copied to `target` where that has bytes. */
INLINE uint64_t move_chunk(Rows source, Rows target, int64_t first, int64_t last, int64_t row_bytes, int with_digest,
                           int past_caches) {
    Lanes sums = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    int64_t stripes_left = (last - first) * row_bytes / STRIPE_BYTES;
    int stripe_of_block = 0;
    for (int64_t index = first; index < last; index++) {
        const uint8_t *from = row_at(source, index, row_bytes);
        uint8_t *to = target.bytes ? row_at(target, index, row_bytes) : NULL;
        int is_streamed = past_caches && ((uintptr_t)to & 15) == 0;
        if (index + 1 < last) prefetch_row(source, index + 1, row_bytes);
        for (int64_t at = 0; at < row_bytes; at += STRIPE_BYTES) {
            Lanes stripe = lanes_at(from + at);
            if (to) store(to + at, stripe, is_streamed);
            if (!with_digest) continue;
            if (--stripes_left == 0) {
                sums = accumulate(sums, stripe, SECRET + sizeof SECRET - STRIPE_BYTES - 7);
            } else {
                sums = accumulate(sums, stripe, SECRET + 8 * stripe_of_block);
                if (++stripe_of_block == BLOCK_STRIPES) {
                    sums = scramble(sums);
                    stripe_of_block = 0;
                }
            }
        }
    }
    if (!with_digest) return 0;
    uint64_t final[8];
    memcpy(final, &sums, sizeof final);
    return merge(final, (uint64_t)((last - first) * row_bytes));
}

ON_WIDEST_UNITS static void move_rows(Rows source, Rows target, int64_t rows, int64_t row_bytes, int64_t chunk_rows,
                                      uint64_t *digests, int past_caches) {
    for (int64_t first = 0; first < rows; first += chunk_rows) {
        int64_t last = rows - first < chunk_rows ? rows : first + chunk_rows;
        if (digests) *digests++ = move_chunk(source, target, first, last, row_bytes, 1, past_caches);
        else move_chunk(source, target, first, last, row_bytes, 0, past_caches);
    }
#if defined(__x86_64__)
    _mm_sfence(); /* what was stored past the caches is visible before what the caller does next */
#endif
}

static int are_within(Rows rows, int64_t count, int64_t row_bytes, Py_ssize_t bytes, const char *name) {
    if (!rows.bytes) return 1;
    int64_t held = bytes / row_bytes;
    for (int64_t i = 0; rows.ids && i < count; i++) {
        if ((uint64_t)rows.ids[i] < (uint64_t)held) continue;
        PyErr_Format(PyExc_IndexError, "%s row %lld is outside 0 to %lld", name, (long long)rows.ids[i], (long long)held - 1);
        return 0;
    }
    if (rows.ids || count <= held) return 1;
    PyErr_Format(PyExc_IndexError, "%s has %lld rows, not %lld", name, (long long)held, (long long)count);
    return 0;
}

static int are_sane(Py_ssize_t count, long long row_bytes, long long chunk_rows, const Py_buffer *source_ids,
                    const Py_buffer *target_ids, const Py_buffer *digests) {
    if (count < 0 || row_bytes < STRIPE_BYTES || row_bytes % STRIPE_BYTES || chunk_rows < 1) {
        PyErr_Format(PyExc_ValueError, "%zd rows of %lld bytes (a multiple of %d), chunks of %lld", count, row_bytes,
                     STRIPE_BYTES, chunk_rows);
        return 0;
    }
    Py_ssize_t id_bytes = 8 * count, digest_bytes = 8 * ((count + chunk_rows - 1) / chunk_rows);
    if ((source_ids->len && source_ids->len != id_bytes) || (target_ids->len && target_ids->len != id_bytes) ||
        (digests->len && digests->len != digest_bytes)) {
        PyErr_Format(PyExc_ValueError, "ids of %zd and %zd bytes, digests of %zd bytes for %zd rows in chunks of %lld",
                     source_ids->len, target_ids->len, digests->len, count, chunk_rows);
        return 0;
    }
    if (digests->len && row_bytes < MIN_DIGEST_BYTES) {
        PyErr_Format(PyExc_ValueError, "rows of %lld bytes: digests want at least %d", row_bytes, MIN_DIGEST_BYTES);
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(move_doc, "move(source, source_ids, target, target_ids, rows, row_bytes, chunk_rows, digests, past_caches)\n\n"
    "Copies `rows` rows of `row_bytes` bytes (a multiple of 64) from `source` to `target`, and puts the XXH3-64 of each\n"
    "`chunk_rows` of them into `digests` (uint64). Ids (int64) say which row of a buffer is meant; empty: in order.\n"
    "An empty `target` only digests, empty `digests` only copy. Raises IndexError and ValueError before anything moves.");

static PyObject *move(PyObject *module, PyObject *args) {
    Py_buffer source, source_ids, target, target_ids, digests;
    Py_ssize_t count;
    long long row_bytes, chunk_rows;
    int past_caches;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*w*y*nLLw*p", &source, &source_ids, &target, &target_ids, &count, &row_bytes, &chunk_rows,
                          &digests, &past_caches))
        return NULL;
    Rows from = {source.buf, source_ids.len ? source_ids.buf : NULL};
    Rows to = {target.len ? target.buf : NULL, target_ids.len ? target_ids.buf : NULL};
    int may_move = are_sane(count, row_bytes, chunk_rows, &source_ids, &target_ids, &digests) &&
                   are_within(from, count, row_bytes, source.len, "source") &&
                   are_within(to, count, row_bytes, target.len, "target");
    if (may_move) {
        Py_BEGIN_ALLOW_THREADS
        move_rows(from, to, count, row_bytes, chunk_rows, digests.len ? digests.buf : NULL, past_caches);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&source_ids);
    PyBuffer_Release(&target);
    PyBuffer_Release(&target_ids);
    PyBuffer_Release(&digests);
    return may_move ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef methods[] = {{"move", move, METH_VARARGS, move_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "baton.kvtransfer.native",
                                        .m_doc = "Rows moved and digested in one pass.", .m_methods = methods};

PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&definition); }
