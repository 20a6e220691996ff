#include "attention.h"

#include <stdlib.h>

#include "threads.h"
#include "vectors.h"

/* A tile is some query rows (heads that share a key head, times tokens) against TILE_KEYS keys at a time; the softmax
 * is carried along (https://arxiv.org/abs/1805.02867), so that scores are never in memory as a whole. */
enum { TILE_ROWS = 32, TILE_KEYS = 64, GROUPS = TILE_KEYS / LANES, SPLIT_KEYS = 512, WRITE_TOKENS = 64 };
enum { MAX_VECS = MAX_HEAD_DIM / LANES };
static const float NEVER = -1e30f; /* below any score, and finite: differences of two stay numbers */

/* `heads` query heads from `head`, tokens [first, last) of the new ones of `sequence`, keys [from, to). Where the keys
 * of a tile are split, `partial` takes sums to be joined. */
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

/* What a tile works on. A row or a key is as many vectors as the head dimension fills (`vecs`), the last one with zeros. */
typedef struct {
    Vec query[TILE_ROWS * MAX_VECS], key[TILE_KEYS * MAX_VECS], value[TILE_KEYS * MAX_VECS], sum[TILE_ROWS * MAX_VECS];
    Vec weight[TILE_ROWS][GROUPS];
    float peak[TILE_ROWS], total[TILE_ROWS];
    int64_t sees_from[TILE_ROWS], sees_to[TILE_ROWS];
} Work;

/* Where the key of token `slot` (block * block_size + offset) and KV head 0 is; its value is `value_offset` behind. */
INLINE int64_t key_offset(const Attention *a, int64_t slot) {
    int64_t block = slot / a->block_size, offset = slot % a->block_size;
    return ((block * a->layers + a->layer) * 2 * a->block_size + offset) * a->kv_heads * a->head_dim;
}
INLINE int64_t value_offset(const Attention *a) { return a->block_size * a->kv_heads * a->head_dim; }

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

INLINE void load_queries(const Attention *a, const Tile *tile, Work *work, Kind kind, int64_t vecs) {
    int64_t past = context_of(a, tile->sequence) - (start_of(a, tile->sequence + 1) - start_of(a, tile->sequence));
    float scale = 1.0f / __builtin_sqrtf((float)a->head_dim);
    int64_t row = 0;
    for (int64_t token = tile->first; token < tile->last; token++) {
        int64_t at = (start_of(a, tile->sequence) + token) * a->query_stride + tile->head * a->head_dim;
        for (int64_t head = 0; head < tile->heads; head++, row++, at += a->head_dim) {
            for (int64_t v = 0; v < vecs; v++) {
                const char *from = (const char *)a->query + (at + v * LANES) * bytes_of(kind);
                work->query[row * vecs + v] = scale * load(from, kind, lanes_left(a->head_dim, v * LANES));
                work->sum[row * vecs + v] = (Vec){0};
            }
            work->peak[row] = NEVER;
            work->total[row] = 0;
            work->sees_to[row] = past + token + 1;
            work->sees_from[row] = a->window && past + token + 1 > a->window ? past + token + 1 - a->window : 0;
        }
    }
}

INLINE void load_keys(const Attention *a, const Tile *tile, Work *work, Kind kind, int64_t vecs, int64_t from,
                      int64_t keys) {
    const int32_t *table = (const int32_t *)a->tables + tile->sequence * a->table_width;
    int64_t kv_head = tile->head / (a->heads / a->kv_heads), size = bytes_of(kind);
    int64_t token_bytes = a->kv_heads * a->head_dim * size, block = from / a->block_size, offset = from % a->block_size;
    for (int64_t key = 0; key < keys; block++, offset = 0) {
        int64_t first = key_offset(a, table[block] * a->block_size + offset) + kv_head * a->head_dim;
        const char *at = (const char *)a->kv + first * size;
        for (; offset < a->block_size && key < keys; offset++, key++, at += token_bytes)
            for (int64_t v = 0; v < vecs; v++) {
                int64_t lanes = lanes_left(a->head_dim, v * LANES);
                work->key[key * vecs + v] = load(at + v * LANES * size, kind, lanes);
                work->value[key * vecs + v] = load(at + (value_offset(a) + v * LANES) * size, kind, lanes);
            }
    }
    for (int64_t key = keys; key < TILE_KEYS; key++)
        for (int64_t v = 0; v < vecs; v++) work->key[key * vecs + v] = work->value[key * vecs + v] = (Vec){0};
}

INLINE Vec scores_of(const Vec *query, const Vec *keys, int64_t vecs) {
    Vec sums[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        sums[i] = query[0] * keys[i * vecs];
        for (int64_t v = 1; v < vecs; v++) sums[i] += query[v] * keys[i * vecs + v];
    }
    return sums_of(sums);
}

/* Scores one row against the keys from `from` on, and carries its softmax along. */
INLINE void weigh(Work *work, int64_t row, int64_t from, int64_t keys, int64_t vecs) {
    const Ints numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t first = work->sees_from[row] - from, last = work->sees_to[row] - from;
    int low = first > 0 ? (int)first : 0, high = last < keys ? (int)last : (int)keys;
    Vec best = splat(NEVER), total = {0};
    Ints seen[GROUPS];
    for (int group = 0; group < GROUPS; group++) {
        seen[group] = (Ints)((numbers + group * LANES >= low) & (numbers + group * LANES < high));
        Vec scores = scores_of(work->query + row * vecs, work->key + group * LANES * vecs, vecs);
        work->weight[row][group] = choose(seen[group], scores, splat(NEVER));
        best = larger(best, work->weight[row][group]);
    }
    float peak = largest_of(best) > work->peak[row] ? largest_of(best) : work->peak[row];
    for (int group = 0; group < GROUPS; group++) {
        Vec weights = exp_negative(work->weight[row][group] - peak);
        work->weight[row][group] = choose(seen[group], weights, (Vec){0});
        total += work->weight[row][group];
    }
    float shrink = exp_negative(splat(work->peak[row] - peak))[0];
    work->total[row] = work->total[row] * shrink + sum_of(total);
    work->peak[row] = peak;
    for (int64_t v = 0; v < vecs; v++) work->sum[row * vecs + v] *= shrink;
}

/* Adds the weighted values to `rows` rows (at most 4), `width` vectors of each (at most 4), kept in registers. */
INLINE void add_values(Work *work, int64_t row, int64_t rows, int64_t vecs, int64_t v, int64_t width, int64_t keys) {
    Vec sums[4][4];
    const float *weights = (const float *)work->weight[row];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t w = 0; w < width; w++) sums[r][w] = work->sum[(row + r) * vecs + v + w];
    for (int64_t key = 0; key < keys; key++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t w = 0; w < width; w++) sums[r][w] += weights[r * TILE_KEYS + key] * work->value[key * vecs + v + w];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t w = 0; w < width; w++) work->sum[(row + r) * vecs + v + w] = sums[r][w];
}

INLINE void add_values_of_rows(Work *work, int64_t row, int64_t rows, int64_t vecs, int64_t keys) {
    int64_t v = 0;
    for (; v + 4 <= vecs; v += 4) add_values(work, row, rows, vecs, v, 4, keys);
    for (; v < vecs; v++) add_values(work, row, rows, vecs, v, 1, keys);
}

INLINE void add_all_values(Work *work, int64_t rows, int64_t vecs, int64_t keys) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) add_values_of_rows(work, row, 4, vecs, keys);
    if (rows - row == 3) add_values_of_rows(work, row, 3, vecs, keys);
    else if (rows - row == 2) add_values_of_rows(work, row, 2, vecs, keys);
    else if (rows - row == 1) add_values_of_rows(work, row, 1, vecs, keys);
}

INLINE void store_rows(const Attention *a, const Tile *tile, Work *work, Kind kind, int64_t vecs) {
    int64_t row = 0;
    for (int64_t token = tile->first; token < tile->last; token++)
        for (int64_t head = tile->head; head < tile->head + tile->heads; head++, row++) {
            int64_t at = ((start_of(a, tile->sequence) + token) * a->heads + head) * a->head_dim;
            for (int64_t v = 0; v < vecs; v++)
                store((char *)a->output + (at + v * LANES) * bytes_of(kind), work->sum[row * vecs + v] / work->total[row], kind,
                      lanes_left(a->head_dim, v * LANES));
        }
}

INLINE int64_t partial_floats(const Attention *a) { return 2 + a->head_dim; }

INLINE void store_partials(const Attention *a, const Tile *tile, Work *work, int64_t rows, int64_t vecs) {
    float *at = tile->partial;
    for (int64_t row = 0; row < rows; row++, at += partial_floats(a)) {
        at[0] = work->peak[row];
        at[1] = work->total[row];
        memcpy(at + 2, work->sum + row * vecs, (size_t)(4 * a->head_dim));
    }
}

INLINE void attend_as(const Attention *a, const Tile *tile, Kind kind, int64_t vecs) {
    Work work;
    int64_t rows = tile->heads * (tile->last - tile->first);
    load_queries(a, tile, &work, kind, vecs);
    for (int64_t from = tile->from; from < tile->to; from += TILE_KEYS) {
        int64_t keys = tile->to - from < TILE_KEYS ? tile->to - from : TILE_KEYS;
        load_keys(a, tile, &work, kind, vecs, from, keys);
        for (int64_t row = 0; row < rows; row++) weigh(&work, row, from, keys, vecs);
        add_all_values(&work, rows, vecs, keys);
    }
    if (tile->partial) store_partials(a, tile, &work, rows, vecs);
    else store_rows(a, tile, &work, kind, vecs);
}

INLINE void attend_any_width(const Attention *a, const Tile *tile, Kind kind) {
    if (a->head_dim == 64) attend_as(a, tile, kind, 4);
    else if (a->head_dim == 128) attend_as(a, tile, kind, 8);
    else attend_as(a, tile, kind, (a->head_dim + LANES - 1) / LANES);
}

ON_WIDEST_UNITS static void attend_tile(const void *context, int64_t index) {
    const Plan *plan = context;
    const Tile *tile = plan->tiles + index;
    if (plan->a->kind == BFLOAT16) attend_any_width(plan->a, tile, BFLOAT16);
    else if (plan->a->kind == FLOAT16) attend_any_width(plan->a, tile, FLOAT16);
    else attend_any_width(plan->a, tile, FLOAT32);
}

/* Joins the parts of a tile of one token whose keys were split. */
static void join(const Attention *a, const Tile *tile) {
    Work work;
    int64_t vecs = (a->head_dim + LANES - 1) / LANES, floats = partial_floats(a);
    for (int64_t row = 0; row < tile->heads; row++) {
        float peak = NEVER, total = 0;
        float *sum = (float *)(work.sum + row * vecs);
        memset(sum, 0, (size_t)vecs * sizeof(Vec));
        for (int64_t split = 0; split < tile->splits; split++)
            peak = __builtin_fmaxf(peak, tile->partial[(split * tile->heads + row) * floats]);
        for (int64_t split = 0; split < tile->splits; split++) {
            const float *part = tile->partial + (split * tile->heads + row) * floats;
            float share = exp_negative(splat(part[0] - peak))[0];
            total += share * part[1];
            for (int64_t d = 0; d < a->head_dim; d++) sum[d] += share * part[2 + d];
        }
        work.total[row] = total;
    }
    store_rows(a, tile, &work, (Kind)a->kind, vecs);
}

typedef struct {
    int64_t heads, chunks, tokens; /* query heads of a tile, tiles of a group of them, new tokens of a tile */
} Shape;

static Shape tile_shape(const Attention *a) {
    int64_t group = a->heads / a->kv_heads, heads = group < TILE_ROWS ? group : TILE_ROWS;
    return (Shape){heads, (group + heads - 1) / heads, TILE_ROWS / heads};
}

/* Only where a step has too few tiles to keep all threads busy are the keys of a decode split. */
static int64_t splits_of(const Attention *a, int64_t sequence, int64_t tiles) {
    int64_t tokens = start_of(a, sequence + 1) - start_of(a, sequence), keys = context_of(a, sequence);
    if (a->window && a->window < keys) keys = a->window;
    int64_t wanted = 4 * a->threads / tiles, most = keys / SPLIT_KEYS;
    int64_t splits = wanted < most ? wanted : most;
    return tokens > 1 || splits < 1 ? 1 : splits;
}

static void add_tiles(Plan *plan, Tile tile, float **partial) {
    const Attention *a = plan->a;
    int64_t past = context_of(a, tile.sequence) - (start_of(a, tile.sequence + 1) - start_of(a, tile.sequence));
    int64_t to = past + tile.last, seen = past + tile.first + 1, from = a->window && seen > a->window ? seen - a->window : 0;
    for (int64_t split = 0, splits = tile.splits; split < splits; split++) {
        tile.from = from + (to - from) * split / splits;
        tile.to = from + (to - from) * (split + 1) / splits;
        tile.splits = split == 0 ? splits : 0;
        tile.partial = splits > 1 ? *partial : NULL;
        if (splits > 1) *partial += tile.heads * partial_floats(a);
        plan->tiles[plan->count++] = tile;
    }
}

static void add_sequence(Plan *plan, Shape shape, int64_t sequence, int64_t splits, float **partial) {
    const Attention *a = plan->a;
    int64_t group = a->heads / a->kv_heads, tokens = start_of(a, sequence + 1) - start_of(a, sequence);
    /* The last tokens see most: what takes longest comes first. */
    for (int64_t at = (tokens - 1) / shape.tokens * shape.tokens; at >= 0; at -= shape.tokens)
        for (int64_t kv_head = 0; kv_head < a->kv_heads; kv_head++)
            for (int64_t chunk = 0; chunk < shape.chunks; chunk++) {
                int64_t head = chunk * shape.heads, heads = group - head < shape.heads ? group - head : shape.heads;
                Tile tile = {.sequence = sequence, .head = kv_head * group + head, .heads = heads, .splits = splits};
                tile.first = at;
                tile.last = at + shape.tokens < tokens ? at + shape.tokens : tokens;
                add_tiles(plan, tile, partial);
            }
}

static int plan_tiles(Plan *plan) {
    const Attention *a = plan->a;
    Shape shape = tile_shape(a);
    int64_t tiles = 0, parts = 0, per_token = a->kv_heads * shape.chunks;
    for (int64_t i = 0; i < a->sequences; i++)
        tiles += per_token * ((start_of(a, i + 1) - start_of(a, i) + shape.tokens - 1) / shape.tokens);
    for (int64_t i = 0; i < a->sequences; i++) parts += per_token * (splits_of(a, i, tiles) - 1);
    plan->tiles = malloc((size_t)(tiles + parts) * sizeof *plan->tiles);
    plan->partials = malloc((size_t)(2 * parts * shape.heads * partial_floats(a) + 1) * sizeof(float));
    if (!plan->tiles || !plan->partials) return 0;
    float *partial = plan->partials;
    for (int64_t i = 0; i < a->sequences; i++) add_sequence(plan, shape, i, splits_of(a, i, tiles), &partial);
    return 1;
}

int attend(const Attention *a) {
    Plan plan = {.a = a};
    int is_planned = plan_tiles(&plan);
    if (is_planned) {
        share(write_tokens, a, (a->tokens + WRITE_TOKENS - 1) / WRITE_TOKENS, a->threads);
        share(attend_tile, &plan, plan.count, a->threads);
        for (int64_t i = 0; i < plan.count; i++)
            if (plan.tiles[i].splits > 1) join(a, plan.tiles + i);
    }
    free(plan.tiles);
    free(plan.partials);
    return is_planned;
}
