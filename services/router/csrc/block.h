/* One block that somebody holds, and who does. Few workers are named in the record itself, more in a bitmap. */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { INLINE_SLOTS = 4, MAX_SLOTS = 8192, MAX_WORDS = MAX_SLOTS / 64 };

typedef struct {
    uint32_t next; /* in its chain */
    uint16_t holders;
    uint8_t words;         /* of the bitmap; 0: there is none */
    uint8_t is_referenced; /* since the clock's hand passed */
    union {
        uint16_t slots[INLINE_SLOTS];
        uint64_t *set;
    };
    uint64_t hash[2];
} Block;

static inline int is_held(const Block *b, uint32_t slot) {
    if (b->words) return slot / 64 < b->words && (b->set[slot / 64] >> slot % 64 & 1);
    for (int i = 0; i < b->holders; i++)
        if (b->slots[i] == slot) return 1;
    return 0;
}

/* Of a block that has one. */
static inline uint32_t any_holder(const Block *b) {
    uint32_t word = 0;
    if (!b->words) return b->slots[0];
    while (!b->set[word]) word++;
    return word * 64 + __builtin_ctzll(b->set[word]);
}

/* Room for `slot` in the bitmap, which the block gets where it had none. 0 where there is no memory. */
static inline int widen(Block *b, uint32_t slot, uint64_t *set_bytes) {
    uint32_t words = slot / 64 + 1, first = b->words;
    for (int i = 0; !b->words && i < INLINE_SLOTS; i++)
        if (b->slots[i] / 64u >= words) words = b->slots[i] / 64u + 1;
    uint64_t *set = realloc(b->words ? b->set : NULL, words * sizeof *set);
    if (!set) return 0;
    memset(set + first, 0, (words - first) * sizeof *set);
    for (int i = 0; !b->words && i < INLINE_SLOTS; i++) set[b->slots[i] / 64] |= 1ULL << b->slots[i] % 64;
    *set_bytes += (words - first) * sizeof *set;
    b->set = set;
    b->words = words;
    return 1;
}

/* 0 where there is no memory. */
static inline int add_holder(Block *b, uint32_t slot, uint64_t *set_bytes) {
    if (!b->words && b->holders < INLINE_SLOTS) {
        b->slots[b->holders++] = slot;
        return 1;
    }
    if (slot / 64 >= b->words && !widen(b, slot, set_bytes)) return 0;
    b->set[slot / 64] |= 1ULL << slot % 64;
    b->holders++;
    return 1;
}

/* From the bitmap back to the record itself. */
static inline void narrow(Block *b, uint64_t *set_bytes) {
    uint64_t *set = b->set;
    int found = 0;
    for (uint32_t word = 0; word < b->words; word++)
        for (uint64_t bits = set[word]; bits; bits &= bits - 1) b->slots[found++] = word * 64 + __builtin_ctzll(bits);
    *set_bytes -= b->words * sizeof *set;
    b->words = 0;
    free(set);
}

static inline void drop_holder(Block *b, uint32_t slot, uint64_t *set_bytes) {
    b->holders--;
    if (b->words) {
        b->set[slot / 64] &= ~(1ULL << slot % 64);
        if (b->holders <= INLINE_SLOTS / 2) narrow(b, set_bytes); /* half: no to and fro at the limit */
        return;
    }
    for (int i = 0; i < b->holders; i++)
        if (b->slots[i] == slot) b->slots[i] = b->slots[b->holders];
}
