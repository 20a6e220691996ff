/* How many leading blocks of a prompt each worker holds. */
#include "table.h"

size_t table_match(Table *t, uint32_t slot, const uint8_t *hashes, size_t count) {
    uint64_t hash[2];
    look_at_first(t, hashes, count);
    for (size_t i = 0; i < count; i++) {
        look_ahead(t, hashes, i, count);
        uint32_t id = find(t, hash_at(hashes, i, hash));
        if (!id || !is_held(block_at(t, id), slot)) return i;
        block_at(t, id)->is_referenced = 1;
    }
    return count;
}

/* Those who hold all blocks so far: a bitmap, and named one by one as soon as a block has few holders. */
typedef struct {
    uint64_t set[MAX_WORDS];
    uint32_t words;
    uint16_t slots[INLINE_SLOTS];
    int few; /* how many slots are named; -1: the bitmap counts */
} Candidates;

static void begin(Candidates *c, const Block *b) {
    c->words = b->words;
    c->few = b->words ? -1 : b->holders;
    if (b->words) memcpy(c->set, b->set, b->words * sizeof *c->set);
    else memcpy(c->slots, b->slots, sizeof c->slots);
}

static void settle(uint32_t word, uint64_t dropped, int32_t count, int32_t *leading) {
    for (; dropped; dropped &= dropped - 1) leading[word * 64 + __builtin_ctzll(dropped)] = count;
}

/* From here on: all of these keep at least one candidate, or return 0. Who drops out has `count` leading blocks. */

static int keep_of_set(Candidates *c, const Block *b, int32_t count, int32_t *leading) {
    uint64_t any = 0;
    for (uint32_t word = 0; word < c->words; word++) {
        uint64_t kept = word < b->words ? c->set[word] & b->set[word] : 0;
        if (kept != c->set[word]) settle(word, c->set[word] ^ kept, count, leading);
        any |= c->set[word] = kept;
    }
    return any != 0;
}

static int keep_few_of_set(Candidates *c, const Block *b, int32_t count, int32_t *leading) {
    c->few = 0;
    for (int i = 0; i < b->holders; i++) {
        uint32_t slot = b->slots[i];
        if (slot / 64 >= c->words || !(c->set[slot / 64] >> slot % 64 & 1)) continue;
        c->set[slot / 64] &= ~(1ULL << slot % 64);
        c->slots[c->few++] = slot;
    }
    for (uint32_t word = 0; word < c->words; word++) settle(word, c->set[word], count, leading);
    return c->few > 0;
}

static int keep_of_few(Candidates *c, const Block *b, int32_t count, int32_t *leading) {
    int kept = 0;
    for (int i = 0; i < c->few; i++) {
        if (is_held(b, c->slots[i])) c->slots[kept++] = c->slots[i];
        else leading[c->slots[i]] = count;
    }
    c->few = kept;
    return kept > 0;
}

static int keep(Candidates *c, const Block *b, int32_t count, int32_t *leading) {
    if (c->few >= 0) return keep_of_few(c, b, count, leading);
    return (b->words ? keep_of_set : keep_few_of_set)(c, b, count, leading);
}

void table_match_all(Table *t, const uint8_t *hashes, size_t count, int32_t *leading, size_t slots) {
    Candidates candidates;
    const Block nobody = {0};
    uint64_t hash[2];
    memset(leading, 0, slots * sizeof *leading);
    look_at_first(t, hashes, count);
    for (size_t i = 0; i < count; i++) {
        look_ahead(t, hashes, i, count);
        uint32_t id = find(t, hash_at(hashes, i, hash));
        if (!id && i == 0) return;
        Block *b = block_at(t, id); /* 0, nobody's, where it is unknown */
        if (i == 0) begin(&candidates, b);
        else if (!keep(&candidates, b, (int32_t)i, leading)) return;
        b->is_referenced = 1;
    }
    if (count) keep(&candidates, &nobody, (int32_t)count, leading);
}
