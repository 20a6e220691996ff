/* Tiles of attention in any kind and width, with whatever vector units there are. */
#include "attention_tiles.h"

/* A tile meets TILE_KEYS keys at a time and carries its softmax along (https://arxiv.org/abs/1805.02867), so that scores
 * are never in memory as a whole. */
enum { TILE_KEYS = 64, GROUPS = TILE_KEYS / LANES, MAX_VECS = MAX_HEAD_DIM / LANES };

/* What a tile works on. A row or a key is as many vectors as the head dimension fills (`vecs`), the last one with zeros. */
typedef struct {
    Vec query[ANY_ROWS * MAX_VECS], key[TILE_KEYS * MAX_VECS], value[TILE_KEYS * MAX_VECS], sum[ANY_ROWS * MAX_VECS];
    Vec weight[ANY_ROWS][GROUPS];
    float peak[ANY_ROWS], total[ANY_ROWS];
    int64_t sees_from[ANY_ROWS], sees_to[ANY_ROWS];
} Work;

INLINE void load_queries(const Attention *a, const Tile *tile, Work *work, Kind kind, int64_t vecs) {
    int64_t past = past_of(a, tile->sequence);
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

INLINE void load_keys(const Attention *a, const Tile *tile, Work *work, Kind kind, int64_t vecs, int64_t kv_head, int64_t from,
                      int64_t keys) {
    const int32_t *table = (const int32_t *)a->tables + tile->sequence * a->table_width;
    int64_t size = bytes_of(kind), token_bytes = a->kv_heads * a->head_dim * size;
    int64_t block = from / a->block_size, offset = from % a->block_size;
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

INLINE void add_all_values(Work *work, int64_t row, int64_t last, int64_t vecs, int64_t keys) {
    for (; row + 4 <= last; row += 4) add_values_of_rows(work, row, 4, vecs, keys);
    if (last - row == 3) add_values_of_rows(work, row, 3, vecs, keys);
    else if (last - row == 2) add_values_of_rows(work, row, 2, vecs, keys);
    else if (last - row == 1) add_values_of_rows(work, row, 1, vecs, keys);
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

INLINE void store_partials(const Attention *a, const Tile *tile, Work *work, int64_t rows, int64_t vecs) {
    float *at = tile->partial;
    for (int64_t row = 0; row < rows; row++, at += partial_floats(a)) {
        at[0] = work->peak[row];
        at[1] = work->total[row];
        memcpy(at + 2, work->sum + row * vecs, (size_t)(4 * a->head_dim));
    }
}

INLINE void attend_keys_as(Work *work, int64_t row, int64_t last, int64_t from, int64_t keys, int64_t vecs) {
    for (int64_t r = row; r < last; r++) weigh(work, r, from, keys, vecs);
    add_all_values(work, row, last, vecs, keys);
}

/* Rows [row, last) of a tile meet its keys. Kept out of its caller, which is compiled for each kind: here all are float32. */
ON_WIDEST_UNITS __attribute__((noinline)) static void attend_keys(Work *work, int64_t row, int64_t last, int64_t from, int64_t keys,
                                                                  int64_t vecs) {
    if (vecs == 4) attend_keys_as(work, row, last, from, keys, 4); /* the compiler knows the commonest width */
    else attend_keys_as(work, row, last, from, keys, vecs);
}

INLINE void attend_as(const Plan *plan, int64_t index, Kind kind) {
    const Attention own = *plan->a, *a = &own; /* copies, which no store to `work` can change */
    const Tile own_tile = plan->tiles[index], *tile = &own_tile;
    Work work;
    int64_t key_heads = key_heads_of(a, tile), rows = tile->heads * (tile->last - tile->first) / key_heads;
    int64_t vecs = (a->head_dim + LANES - 1) / LANES;
    load_queries(a, tile, &work, kind, vecs);
    for (int64_t from = tile->from; from < tile->to; from += TILE_KEYS) {
        int64_t keys = tile->to - from < TILE_KEYS ? tile->to - from : TILE_KEYS;
        for (int64_t head = 0, row = 0; head < key_heads; head++, row += rows) {
            load_keys(a, tile, &work, kind, vecs, tile->head / group_of(a) + head, from, keys);
            attend_keys(&work, row, row + rows, from, keys, vecs);
        }
    }
    if (tile->partial) store_partials(a, tile, &work, key_heads * rows, vecs);
    else store_rows(a, tile, &work, kind, vecs);
}

ON_WIDEST_UNITS void attend_any_tile(const void *context, int64_t index) {
    const Plan *plan = context;
    if (plan->a->kind == BFLOAT16) attend_as(plan, index, BFLOAT16);
    else if (plan->a->kind == FLOAT16) attend_as(plan, index, FLOAT16);
    else attend_as(plan, index, FLOAT32);
}
