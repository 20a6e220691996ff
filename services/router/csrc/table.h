/* Which workers hold which blocks: a set of pairs (block hash, worker's slot) that answers for a whole prompt and all
 * workers at once. Nothing here knows Python, and nothing is safe to call from two threads at a time. */
#pragma once
#include "block.h"
#include "chains.h"

enum { HASH_BYTES = 16 };
enum Claim { STORED = 1, EXPECTED = 2 };

/* One block on one worker. claims: STORED where it is, and EXPECTED for each request that expects it there. */
typedef struct {
    uint32_t next; /* in its chain */
    uint32_t block;
    uint32_t older, newer; /* of the same worker */
    uint16_t slot;
    uint16_t claims;
} Pair;

typedef struct {
    uint32_t oldest, newest, count;
    uint32_t stored; /* of `count`; the others are only expected */
} Worker;

typedef struct {
    Chains blocks, pairs;
    Worker *workers;
    uint32_t max_pairs, hand, slots; /* slots: 1 + the highest ever used */
    uint64_t set_bytes, evicted_blocks;
} Table;

/* 0 where there is no memory; `table_free` is due all the same. */
int table_init(Table *table, uint32_t max_pairs, const uint64_t *key);
void table_free(Table *table);

/* Notes that the worker holds these blocks, the last one most recently; makes room where the table is full. 0 where
 * there is no memory. */
int table_claim(Table *table, uint32_t slot, const uint8_t *hashes, size_t count, enum Claim claim);

/* Takes a claim back; a pair that has none left is gone. */
void table_disclaim(Table *table, uint32_t slot, const uint8_t *hashes, size_t count, enum Claim claim);

/* Drops the worker's least recently claimed blocks until it has at most `count`. */
void table_shrink(Table *table, uint32_t slot, uint32_t count);

/* Of what is in use; the arrays that it lies in are reserved, and untouched behind that. */
uint64_t table_bytes(const Table *table);

/* How many leading blocks each worker holds. `leading`: one number for each of `slots`, no fewer than the table's. */
void table_match_all(Table *table, const uint8_t *hashes, size_t count, int32_t *leading, size_t slots);
size_t table_match(Table *table, uint32_t slot, const uint8_t *hashes, size_t count);

static inline Block *block_at(const Table *t, uint32_t id) { return (Block *)t->blocks.records + id; }

/* Keyed, so that nobody can choose hashes that share a chain. */
static inline uint32_t bucket_hash(const uint64_t *key, const uint64_t *hash) {
    unsigned __int128 product = (unsigned __int128)(hash[0] ^ key[0]) * (hash[1] ^ key[1]);
    return (uint32_t)(product >> 64) ^ (uint32_t)product;
}

static inline uint32_t find(const Table *t, const uint64_t *hash) {
    uint32_t id = *head_of(&t->blocks, bucket_hash(t->blocks.key, hash));
    while (id && (block_at(t, id)->hash[0] != hash[0] || block_at(t, id)->hash[1] != hash[1])) id = block_at(t, id)->next;
    return id;
}

static inline const uint64_t *hash_at(const uint8_t *hashes, size_t index, uint64_t *hash) {
    return memcpy(hash, hashes + index * HASH_BYTES, HASH_BYTES);
}

/* A prompt's blocks lie anywhere in hundreds of megabytes, so a lookup is mostly waiting for memory. These have the
 * lines of the next blocks on their way while the present one is compared. */
enum { HEAD_AHEAD = 24, BLOCK_AHEAD = 16, SET_AHEAD = 8 };

static inline uint32_t *head_for(const Table *t, const uint8_t *hashes, size_t index) {
    uint64_t hash[2];
    return head_of(&t->blocks, bucket_hash(t->blocks.key, hash_at(hashes, index, hash)));
}

static inline void look_ahead(const Table *t, const uint8_t *hashes, size_t index, size_t count) {
    if (index + HEAD_AHEAD < count) __builtin_prefetch(head_for(t, hashes, index + HEAD_AHEAD));
    if (index + BLOCK_AHEAD < count) __builtin_prefetch(block_at(t, *head_for(t, hashes, index + BLOCK_AHEAD)));
    if (index + SET_AHEAD < count) {
        const Block *b = block_at(t, *head_for(t, hashes, index + SET_AHEAD));
        if (b->words) __builtin_prefetch(b->set);
    }
}

/* What `look_ahead` would have fetched for the first ones. */
static inline void look_at_first(const Table *t, const uint8_t *hashes, size_t count) {
    for (size_t i = 0; i < count && i < HEAD_AHEAD; i++) __builtin_prefetch(head_for(t, hashes, i));
    for (size_t i = 0; i < count && i < BLOCK_AHEAD; i++) __builtin_prefetch(block_at(t, *head_for(t, hashes, i)));
}
