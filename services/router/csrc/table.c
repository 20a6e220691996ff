/* What changes the table. When it is full, a clock evicts: its hand goes around all blocks, spares those that were
 * matched or claimed again since it last passed, and drops the first other one from all its workers. */
#include "table.h"

static Pair *pair_at(const Table *t, uint32_t id) { return (Pair *)t->pairs.records + id; }

static uint32_t pair_hash(uint32_t block, uint32_t slot) {
    return (uint32_t)((((uint64_t)block << 16 | slot) * 0x9E3779B97F4A7C15ULL) >> 32);
}

static uint32_t hash_of_block(const Chains *c, uint32_t id) { return bucket_hash(c->key, ((Block *)c->records)[id].hash); }

static uint32_t hash_of_pair(const Chains *c, uint32_t id) {
    const Pair *p = (const Pair *)c->records + id;
    return pair_hash(p->block, p->slot);
}

int table_init(Table *t, uint32_t max_pairs, const uint64_t *key) {
    *t = (Table){.max_pairs = max_pairs};
    t->blocks = (Chains){.record_bytes = sizeof(Block), .hash_of = hash_of_block, .key = {key[0], key[1]}};
    t->pairs = (Chains){.record_bytes = sizeof(Pair), .hash_of = hash_of_pair};
    t->workers = calloc(MAX_SLOTS, sizeof *t->workers);
    return t->workers && chains_init(&t->blocks, max_pairs) && chains_init(&t->pairs, max_pairs);
}

void table_free(Table *t) {
    for (uint32_t id = 1; id < t->blocks.fresh; id++)
        if (block_at(t, id)->holders && block_at(t, id)->words) free(block_at(t, id)->set);
    free(t->blocks.records);
    free(t->blocks.heads);
    free(t->pairs.records);
    free(t->pairs.heads);
    free(t->workers);
}

/* Of a block that the worker holds. */
static uint32_t find_pair(const Table *t, uint32_t block, uint32_t slot) {
    uint32_t id = *head_of(&t->pairs, pair_hash(block, slot));
    while (pair_at(t, id)->block != block || pair_at(t, id)->slot != slot) id = pair_at(t, id)->next;
    return id;
}

static void unlink_pair(Table *t, Pair *p) {
    Worker *w = t->workers + p->slot;
    *(p->older ? &pair_at(t, p->older)->newer : &w->oldest) = p->newer;
    *(p->newer ? &pair_at(t, p->newer)->older : &w->newest) = p->older;
}

static void link_newest(Table *t, uint32_t id) {
    Pair *p = pair_at(t, id);
    Worker *w = t->workers + p->slot;
    p->older = w->newest;
    p->newer = 0;
    *(w->newest ? &pair_at(t, w->newest)->newer : &w->oldest) = id;
    w->newest = id;
}

static void drop_pair(Table *t, uint32_t id) {
    Pair *p = pair_at(t, id);
    Block *b = block_at(t, p->block);
    uint32_t block = p->block;
    unlink_pair(t, p);
    t->workers[p->slot].count--;
    t->workers[p->slot].stored -= p->claims & STORED;
    drop_holder(b, p->slot, &t->set_bytes);
    give_back(&t->pairs, id);
    if (!b->holders) give_back(&t->blocks, block);
}

static void evict(Table *t) {
    for (;;) {
        t->hand = t->hand + 1 < t->blocks.fresh ? t->hand + 1 : 1;
        Block *b = block_at(t, t->hand);
        if (b->holders && !b->is_referenced) break;
        b->is_referenced = 0;
    }
    for (Block *b = block_at(t, t->hand); b->holders;) drop_pair(t, find_pair(t, t->hand, any_holder(b)));
    t->evicted_blocks++;
}

static uint32_t new_block(Table *t, const uint64_t *hash) {
    uint32_t id = take(&t->blocks);
    *block_at(t, id) = (Block){.hash = {hash[0], hash[1]}};
    chain(&t->blocks, id);
    return id;
}

/* The pair of this block and worker, in nobody's order and made where it was missing; 0 where there is no memory. */
static uint32_t pair_for(Table *t, uint32_t slot, const uint64_t *hash) {
    uint32_t block = find(t, hash);
    if (block) {
        block_at(t, block)->is_referenced = 1;
        if (is_held(block_at(t, block), slot)) {
            uint32_t held = find_pair(t, block, slot);
            unlink_pair(t, pair_at(t, held));
            return held;
        }
    }
    if (t->pairs.used == t->max_pairs) {
        evict(t);
        block = find(t, hash); /* it may have been the victim */
    }
    if (!block) block = new_block(t, hash);
    if (!add_holder(block_at(t, block), slot, &t->set_bytes)) return 0;
    uint32_t id = take(&t->pairs);
    *pair_at(t, id) = (Pair){.block = block, .slot = slot};
    chain(&t->pairs, id);
    t->workers[slot].count++;
    return id;
}

int table_claim(Table *t, uint32_t slot, const uint8_t *hashes, size_t count, enum Claim claim) {
    uint64_t hash[2];
    if (slot >= t->slots) t->slots = slot + 1;
    look_at_first(t, hashes, count);
    for (size_t i = 0; i < count; i++) {
        look_ahead(t, hashes, i, count);
        uint32_t id = pair_for(t, slot, hash_at(hashes, i, hash));
        if (!id) return 0;
        link_newest(t, id);
        Pair *p = pair_at(t, id);
        if (claim == STORED) t->workers[slot].stored += !(p->claims & STORED), p->claims |= STORED;
        else if (p->claims + EXPECTED <= UINT16_MAX) p->claims += EXPECTED;
    }
    return 1;
}

void table_disclaim(Table *t, uint32_t slot, const uint8_t *hashes, size_t count, enum Claim claim) {
    uint64_t hash[2];
    look_at_first(t, hashes, count);
    for (size_t i = 0; i < count; i++) {
        look_ahead(t, hashes, i, count);
        uint32_t block = find(t, hash_at(hashes, i, hash));
        if (!block || !is_held(block_at(t, block), slot)) continue;
        uint32_t id = find_pair(t, block, slot);
        Pair *p = pair_at(t, id);
        if (claim == STORED) t->workers[slot].stored -= p->claims & STORED, p->claims &= ~STORED;
        else if (p->claims >= EXPECTED) p->claims -= EXPECTED;
        if (!p->claims) drop_pair(t, id);
    }
}

void table_shrink(Table *t, uint32_t slot, uint32_t count) {
    while (t->workers[slot].count > count) drop_pair(t, t->workers[slot].oldest);
}

uint64_t table_bytes(const Table *t) {
    return t->blocks.used * sizeof(Block) + t->pairs.used * sizeof(Pair) +
           ((uint64_t)t->blocks.buckets + t->pairs.buckets) * sizeof(uint32_t) + t->set_bytes;
}
