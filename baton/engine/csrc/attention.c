#include "attention.h"

#include <stdlib.h>

#include "attention_tiles.h"
#include "threads.h"

enum { SPLIT_KEYS = 256, WRITE_TOKENS = 64 };

static void write_tokens(const void *context, int64_t index) {
    const Attention *a = context;
    int64_t size = bytes_of((Kind)a->kind), row_bytes = a->kv_heads * a->head_dim * size;
    int64_t last = (index + 1) * WRITE_TOKENS < a->tokens ? (index + 1) * WRITE_TOKENS : a->tokens;
    for (int64_t token = index * WRITE_TOKENS; token < last; token++) {
        char *to = (char *)a->kv + key_offset(a, ((const int64_t *)a->slots)[token]) * size;
        memcpy(to, (const char *)a->key + token * a->key_stride * size, (size_t)row_bytes);
        memcpy(to + value_offset(a) * size, (const char *)a->value + token * a->value_stride * size, (size_t)row_bytes);
    }
}

INLINE int64_t tokens_of(const Attention *a, int64_t sequence) { return start_of(a, sequence + 1) - start_of(a, sequence); }

INLINE int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

/* Heads of a tile, at most: a group's, or of a single token as many groups as fit, whose keys then stream by together. */
static int64_t heads_of_tile(const Attention *a, int64_t tokens, int64_t rows) {
    int64_t group = group_of(a);
    return group >= rows ? rows : tokens > 1 ? group : lower(rows / group * group, a->heads);
}

/* Only where a step has too few tiles to keep all threads busy are the keys of a decode split. */
static int64_t splits_of(const Attention *a, int64_t sequence, int64_t tiles) {
    int64_t keys = context_of(a, sequence);
    if (a->window && a->window < keys) keys = a->window;
    int64_t splits = lower(4 * a->threads / tiles, keys / SPLIT_KEYS);
    return tokens_of(a, sequence) > 1 || splits < 1 ? 1 : splits;
}

static void add_tile(Plan *plan, Tile tile, float **partial) {
    const Attention *a = plan->a;
    int64_t past = past_of(a, tile.sequence), to = past + tile.last, seen = past + tile.first + 1;
    int64_t from = a->window && seen > a->window ? seen - a->window : 0;
    for (int64_t split = 0, splits = tile.splits; split < splits; split++) {
        tile.from = from + (to - from) * split / splits;
        tile.to = from + (to - from) * (split + 1) / splits;
        tile.splits = split == 0 ? splits : 0;
        tile.partial = splits > 1 ? *partial : NULL;
        if (splits > 1) *partial += tile.heads * partial_floats(a);
        plan->tiles[plan->count++] = tile;
    }
}

/* Adds the tiles of a sequence, without splits; where `plan` has no memory yet, only counts them. */
static void add_sequence(Plan *plan, int64_t sequence, int64_t splits, float **partial) {
    const Attention *a = plan->a;
    int64_t tokens = tokens_of(a, sequence), rows = serves_bfloat16(a) ? BFLOAT16_ROWS : ANY_ROWS;
    int64_t most = heads_of_tile(a, tokens, rows), step = rows / most;
    /* The last tokens see most: what takes longest comes first. */
    for (int64_t at = (tokens - 1) / step * step; at >= 0; at -= step)
        for (int64_t head = 0, heads; head < a->heads; head += heads) {
            heads = lower(most, (most < group_of(a) ? head / group_of(a) * group_of(a) + group_of(a) : a->heads) - head);
            Tile tile = {.sequence = sequence, .head = head, .heads = heads, .first = at, .last = lower(at + step, tokens)};
            tile.splits = splits;
            if (plan->tiles) add_tile(plan, tile, partial);
            else plan->count++;
        }
}

static int plan_tiles(Plan *plan) {
    const Attention *a = plan->a;
    int64_t parts = 0;
    for (int64_t i = 0; i < a->sequences; i++) add_sequence(plan, i, 1, NULL);
    int64_t tiles = plan->count, most = 4 * a->threads; /* parts of the tiles that are split */
    if (tiles < most) parts = most;
    plan->tiles = malloc((size_t)(tiles + parts) * sizeof *plan->tiles);
    plan->partials = malloc((size_t)(parts * a->heads * partial_floats(a) + 1) * sizeof(float));
    if (!plan->tiles || !plan->partials) return 0;
    float *partial = plan->partials;
    plan->count = 0;
    for (int64_t i = 0; i < a->sequences; i++) add_sequence(plan, i, splits_of(a, i, tiles), &partial);
    return 1;
}

/* Joins the parts of a tile of one token whose keys were split. */
static void join(const Attention *a, const Tile *tile) {
    int64_t floats = partial_floats(a), at = (start_of(a, tile->sequence) * a->heads + tile->head) * a->head_dim;
    for (int64_t row = 0; row < tile->heads; row++, at += a->head_dim) {
        Vec sum[MAX_HEAD_DIM / LANES] = {0};
        float peak = NEVER, total = 0;
        for (int64_t split = 0; split < tile->splits; split++)
            peak = __builtin_fmaxf(peak, tile->partial[(split * tile->heads + row) * floats]);
        for (int64_t split = 0; split < tile->splits; split++) {
            const float *part = tile->partial + (split * tile->heads + row) * floats;
            float share = exp_negative(splat(part[0] - peak))[0];
            total += share * part[1];
            for (int64_t d = 0; d < a->head_dim; d++) ((float *)sum)[d] += share * part[2 + d];
        }
        for (int64_t d = 0; d < a->head_dim; d += LANES)
            store((char *)a->output + (at + d) * bytes_of((Kind)a->kind), sum[d / LANES] / total, (Kind)a->kind,
                  lanes_left(a->head_dim, d));
    }
}

int attend(const Attention *a) {
    Plan plan = {.a = a};
    int is_planned = plan_tiles(&plan);
    if (is_planned) {
        share(write_tokens, a, (a->tokens + WRITE_TOKENS - 1) / WRITE_TOKENS, a->threads);
        share(serves_bfloat16(a) ? attend_bfloat16_tile : attend_any_tile, &plan, plan.count, a->threads);
        for (int64_t i = 0; i < plan.count; i++)
            if (plan.tiles[i].splits > 1) join(a, plan.tiles + i);
    }
    free(plan.tiles);
    free(plan.partials);
    return is_planned;
}
