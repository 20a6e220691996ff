#include "prompt_hashes.h"

#include "sha256.h"
#include "table.h"

enum { TOKEN_BYTES = sizeof(uint32_t), LENGTH_BYTES = 8 };

/* (count,) as the machine has numbers, which is how `baton.block_hash` packs them; 0 with an error set. */
static int read_tokens(PyObject *ids, Py_ssize_t count, uint32_t *tokens) {
    PyObject *(*item)(PyObject *, Py_ssize_t) = PyList_Check(ids) ? PyList_GetItem : PyTuple_GetItem;
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long token = PyLong_AsUnsignedLong(item(ids, i));
        if (token == (unsigned long)-1 && PyErr_Occurred()) return 0;
        if (token > UINT32_MAX) {
            PyErr_Format(PyExc_OverflowError, "token id %lu has more than 32 bits", token);
            return 0;
        }
        tokens[i] = (uint32_t)token;
    }
    return 1;
}

/* message: room for a whole one, zeros. The padding behind its content: a one, zeros, and its length in bits. */
static void pad(uint8_t *message, size_t content_bytes, size_t padded_bytes) {
    uint64_t bits = (uint64_t)content_bytes * 8;
    message[content_bytes] = 0x80;
    for (int i = 0; i < LENGTH_BYTES; i++) message[padded_bytes - 1 - i] = (uint8_t)(bits >> 8 * i);
}

/* The first HASH_BYTES of the digest of a padded message. */
static void digest(Compress *compress, const uint8_t *message, size_t padded_bytes, uint8_t *hash) {
    uint32_t state[SHA256_WORDS];
    memcpy(state, SHA256_BEGIN, sizeof state);
    for (size_t at = 0; at < padded_bytes; at += SHA256_BLOCK_BYTES) compress(state, message + at);
    for (int i = 0; i < HASH_BYTES; i++) hash[i] = (uint8_t)(state[i / 4] >> (24 - i % 4 * 8));
}

/* hashes: the seed, and room for all. */
static int chain_hashes(Compress *compress, const uint32_t *tokens, size_t blocks, size_t block_tokens, uint8_t *hashes) {
    size_t content_bytes = HASH_BYTES + block_tokens * TOKEN_BYTES;
    size_t padded_bytes = (content_bytes + 1 + LENGTH_BYTES + SHA256_BLOCK_BYTES - 1) / SHA256_BLOCK_BYTES * SHA256_BLOCK_BYTES;
    uint8_t *message = calloc(padded_bytes, 1);
    if (!message) return 0;
    pad(message, content_bytes, padded_bytes);
    for (size_t i = 0; i < blocks; i++) {
        memcpy(message, hashes + i * HASH_BYTES, HASH_BYTES);
        memcpy(message + HASH_BYTES, tokens + i * block_tokens, block_tokens * TOKEN_BYTES);
        digest(compress, message, padded_bytes, hashes + (i + 1) * HASH_BYTES);
    }
    free(message);
    return 1;
}

static PyObject *hashes_of(Compress *compress, const char *seed, PyObject *ids, size_t block_tokens) {
    Py_ssize_t count = PySequence_Size(ids);
    size_t blocks = (size_t)count / block_tokens;
    uint32_t *tokens = malloc((size_t)count * TOKEN_BYTES + 1);
    uint8_t *hashes = malloc((blocks + 1) * HASH_BYTES);
    PyObject *result = NULL;
    if (!tokens || !hashes) {
        PyErr_NoMemory();
    } else if (read_tokens(ids, count, tokens)) {
        memcpy(hashes, seed, HASH_BYTES);
        int is_done = !blocks || chain_hashes(compress, tokens, blocks, block_tokens, hashes);
        result = is_done ? PyBytes_FromStringAndSize((char *)hashes + HASH_BYTES, (Py_ssize_t)(blocks * HASH_BYTES))
                         : PyErr_NoMemory();
    }
    free(tokens);
    free(hashes);
    return result;
}

static PyObject *read_and_hash(Compress *compress, PyObject *const *args, Py_ssize_t given) {
    char *seed;
    Py_ssize_t seed_bytes;
    if (given != 3) return PyErr_Format(PyExc_TypeError, "%zd arguments, not a seed, token ids and a block size", given);
    if (PyBytes_AsStringAndSize(args[0], &seed, &seed_bytes)) return NULL;
    if (seed_bytes != HASH_BYTES) return PyErr_Format(PyExc_ValueError, "the seed has %zd bytes, not %d", seed_bytes, HASH_BYTES);
    Py_ssize_t block_tokens = PyLong_AsSsize_t(args[2]);
    if (block_tokens == -1 && PyErr_Occurred()) return NULL;
    if (block_tokens < 1) return PyErr_Format(PyExc_ValueError, "block_size is %zd, not at least 1", block_tokens);
    PyObject *ids = PySequence_Fast(args[1], "token ids are no sequence");
    if (!ids) return NULL;
    PyObject *hashes = hashes_of(compress, seed, ids, (size_t)block_tokens);
    Py_DECREF(ids);
    return hashes;
}

PyObject *hash_blocks(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    (void)module;
    return read_and_hash(sha256_fastest(), args, given);
}

PyObject *hash_blocks_portably(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    (void)module;
    return read_and_hash(sha256_compress_portably, args, given);
}
