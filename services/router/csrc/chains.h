/* A linear hash table (Litwin 1980) of records that lie in one array and begin with the id of the next one in their
 * chain: it grows by one bucket at a time, so no insertion ever waits for a rehash. Record 0 is nobody, all zeros. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

typedef struct Chains Chains;

struct Chains {
    uint32_t *heads;
    char *records;
    size_t record_bytes;
    uint32_t (*hash_of)(const Chains *, uint32_t id);
    uint64_t key[2]; /* for `hash_of` */
    uint32_t buckets, mask;
    uint32_t used, fresh, free; /* records in use; the first that was never used; the last that was given back */
};

enum { LARGE_PAGE_BYTES = 1 << 21 };

/* Untouched memory costs nothing, and large pages spare most lookups a miss in the page tables. */
static inline void *reserve(size_t bytes) {
    size_t whole = (bytes + LARGE_PAGE_BYTES - 1) / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES;
    void *memory = aligned_alloc(LARGE_PAGE_BYTES, whole);
#ifdef MADV_HUGEPAGE
    if (memory && bytes > LARGE_PAGE_BYTES) madvise(memory, whole, MADV_HUGEPAGE);
#endif
    return memory;
}

/* 0 where there is no memory. */
static inline int chains_init(Chains *c, uint32_t capacity) {
    c->buckets = c->mask = c->fresh = 1;
    c->records = reserve(((size_t)capacity + 1) * c->record_bytes);
    c->heads = reserve(((size_t)capacity + 1) * sizeof *c->heads);
    if (!c->records || !c->heads) return 0;
    memset(c->records, 0, c->record_bytes);
    c->heads[0] = 0;
    return 1;
}

static inline uint32_t *next_of(const Chains *c, uint32_t id) {
    return (uint32_t *)(c->records + (size_t)id * c->record_bytes);
}

static inline uint32_t *head_of(const Chains *c, uint32_t hash) {
    uint32_t bucket = hash & c->mask;
    return c->heads + (bucket < c->buckets ? bucket : bucket & (c->mask >> 1));
}

/* Divides the next bucket's chain between it and a new one. */
static inline void add_bucket(Chains *c) {
    if (c->buckets > c->mask) c->mask = 2 * c->mask + 1;
    uint32_t added = c->buckets++, split = added & (c->mask >> 1);
    uint32_t id = c->heads[split], next;
    c->heads[split] = c->heads[added] = 0;
    for (; id; id = next) {
        uint32_t *head = head_of(c, c->hash_of(c, id)), *link = next_of(c, id);
        next = *link;
        *link = *head;
        *head = id;
    }
}

/* A record of unspecified content that is in no chain yet; the caller keeps to the capacity. */
static inline uint32_t take(Chains *c) {
    uint32_t id = c->free;
    c->used++;
    if (!id) return c->fresh++;
    c->free = *next_of(c, id);
    return id;
}

/* Puts a record, whose content is there by now, into its chain. */
static inline void chain(Chains *c, uint32_t id) {
    if (c->used > c->buckets) add_bucket(c);
    uint32_t *head = head_of(c, c->hash_of(c, id));
    *next_of(c, id) = *head;
    *head = id;
}

static inline void give_back(Chains *c, uint32_t id) {
    uint32_t *link = head_of(c, c->hash_of(c, id));
    while (*link != id) link = next_of(c, *link);
    *link = *next_of(c, id);
    *next_of(c, id) = c->free;
    c->free = id;
    c->used--;
}
