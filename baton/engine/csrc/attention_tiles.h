/* How attention is cut into tasks: what the planner of attention.c hands to the code that computes a tile. */
#ifndef BATON_ATTENTION_TILES_H
#define BATON_ATTENTION_TILES_H

#include "attention.h"
#include "vectors.h"

static const float NEVER = -1e30f; /* below any score, and finite: differences of two stay numbers */

/* Some query rows (tokens times heads) against keys [from, to): `heads` query heads from `head`, tokens [first, last) of
 * the new ones of `sequence`. The heads are of one group, sharing a key head, or of whole groups; then it is one token.
 * Row by row come the heads of a token, then the next token. Where the keys are split, `partial` takes sums to be joined. */
typedef struct {
    int64_t sequence, head, heads, first, last, from, to, splits;
    float *partial;
} Tile;

typedef struct {
    const Attention *a;
    Tile *tiles;
    int64_t count;
    float *partials;
} Plan;

/* Tasks for `share`, with a Plan as context: any kind and width, and the faster way for bfloat16. */
enum { ANY_ROWS = 32, BFLOAT16_ROWS = 64 }; /* rows of a tile, at most */
void attend_any_tile(const void *plan, int64_t index);
void attend_bfloat16_tile(const void *plan, int64_t index);
int serves_bfloat16(const Attention *a);

INLINE int64_t group_of(const Attention *a) { return a->heads / a->kv_heads; }

INLINE int64_t key_heads_of(const Attention *a, const Tile *tile) {
    return tile->heads > group_of(a) ? tile->heads / group_of(a) : 1;
}

INLINE int64_t past_of(const Attention *a, int64_t sequence) {
    return context_of(a, sequence) - (start_of(a, sequence + 1) - start_of(a, sequence));
}

/* Where the key of token `slot` (block * block_size + offset) and KV head 0 is; its value is `value_offset` behind. */
INLINE int64_t key_offset(const Attention *a, int64_t slot) {
    int64_t block = slot / a->block_size, offset = slot % a->block_size;
    return ((block * a->layers + a->layer) * 2 * a->block_size + offset) * a->kv_heads * a->head_dim;
}
INLINE int64_t value_offset(const Attention *a) { return a->block_size * a->kv_heads * a->head_dim; }

/* What a split tile leaves of a row: its largest score, the sum of its weights, and the weighted values. */
INLINE int64_t partial_floats(const Attention *a) { return 2 + a->head_dim; }

#endif
