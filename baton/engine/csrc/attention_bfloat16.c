/* Tiles of attention in bfloat16 with sums in float32, on processors with AVX512-BF16: keys and values are laid out for
 * the same products as weights are (`products.h`), as FlashAttention-2 does on matrix units
 * (https://arxiv.org/abs/2307.08691); weights are rounded to bfloat16 before they meet the values. */
#include "attention_tiles.h"
#include "products.h"

#ifdef WITH_BFLOAT16

enum { KEYS = 64, GROUPS = KEYS / LANES, DIMS = 64, MAX_VECS = MAX_HEAD_DIM / LANES };
static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

/* Of KEYS keys, [pairs of dimensions][keys], and of their values, [pairs of keys][dimensions]: pairs of bfloat16. */
typedef struct {
    uint32_t query[BFLOAT16_ROWS * MAX_HEAD_DIM / 2], key[KEYS * MAX_HEAD_DIM / 2], value[KEYS * MAX_HEAD_DIM / 2];
    __m512 sum[BFLOAT16_ROWS * MAX_VECS], total[BFLOAT16_ROWS];
    __m512bh weight[PRODUCT_ROWS][KEYS / 32];
    float peak[BFLOAT16_ROWS]; /* in powers of two */
    int64_t sees_from[BFLOAT16_ROWS], sees_to[BFLOAT16_ROWS];
} Work;

int serves_bfloat16(const Attention *a) {
    return a->kind == BFLOAT16 && a->head_dim % 32 == 0 && has_bfloat16_products();
}

INLINE_WITH_BFLOAT16 void load_queries(const Attention *a, const Tile *tile, Work *work) {
    int64_t past = past_of(a, tile->sequence), row = 0;
    for (int64_t token = tile->first; token < tile->last; token++) {
        const uint16_t *from = (const uint16_t *)a->query + (start_of(a, tile->sequence) + token) * a->query_stride;
        memcpy(work->query + row * a->head_dim / 2, from + tile->head * a->head_dim, (size_t)(2 * tile->heads * a->head_dim));
        for (int64_t head = 0; head < tile->heads; head++, row++) {
            for (int64_t v = 0; v < a->head_dim / LANES; v++) work->sum[row * a->head_dim / LANES + v] = _mm512_setzero_ps();
            work->total[row] = _mm512_setzero_ps();
            work->peak[row] = NEVER;
            work->sees_to[row] = past + token + 1;
            work->sees_from[row] = a->window && past + token + 1 > a->window ? past + token + 1 - a->window : 0;
        }
    }
}

/* Where each of `count` keys from `from` on lies, of the tile's first key head. */
INLINE void find_keys(const Attention *a, const Tile *tile, int64_t from, int64_t count, const uint16_t **keys) {
    const int32_t *table = (const int32_t *)a->tables + tile->sequence * a->table_width;
    int64_t block = from / a->block_size, offset = from % a->block_size, head = tile->head / group_of(a);
    for (int64_t key = 0; key < count; block++, offset = 0) {
        int64_t first = key_offset(a, table[block] * a->block_size + offset) + head * a->head_dim;
        const uint16_t *at = (const uint16_t *)a->kv + first;
        for (; offset < a->block_size && key < count; offset++, key++, at += a->kv_heads * a->head_dim) keys[key] = at;
    }
}

/* Columns become rows, of 16 times 16. */
INLINE_WITH_BFLOAT16 void transpose(__m512i *r) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        __m512i even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xDD);
        __m512i even2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88), odd2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xDD);
        t[j] = _mm512_shuffle_i32x4(even, even2, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xDD);
        t[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
    }
    memcpy(r, t, sizeof t);
}

/* offset: of the key head from the tile's first one, in elements. Zeros stand for the keys behind the last. */
INLINE_WITH_BFLOAT16 void lay_out_keys(const Attention *a, Work *work, const uint16_t **keys, int64_t count, int64_t offset) {
    for (int64_t group = 0; group < KEYS; group += LANES)
        for (int64_t pair = 0; pair < a->head_dim / 2; pair += LANES) {
            __m512i rows[LANES];
            for (int64_t i = 0; i < LANES; i++)
                rows[i] = group + i < count ? _mm512_loadu_si512(keys[group + i] + offset + 2 * pair) : _mm512_setzero_si512();
            transpose(rows);
            for (int64_t i = 0; i < LANES; i++) _mm512_store_si512(work->key + (pair + i) * KEYS + group, rows[i]);
        }
}

INLINE_WITH_BFLOAT16 void lay_out_values(const Attention *a, Work *work, const uint16_t **keys, int64_t count,
                                         int64_t offset) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                           36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    offset += value_offset(a);
    for (int64_t key = 0; key < count; key += 2)
        for (int64_t d = 0; d < a->head_dim; d += 32) {
            __m512i even = _mm512_loadu_si512(keys[key] + offset + d);
            __m512i odd = key + 1 < count ? _mm512_loadu_si512(keys[key + 1] + offset + d) : _mm512_setzero_si512();
            uint32_t *to = work->value + key / 2 * a->head_dim + d;
            _mm512_store_si512(to, _mm512_permutex2var_epi16(even, first, odd));
            _mm512_store_si512(to + LANES, _mm512_permutex2var_epi16(even, second, odd));
        }
}

/* 2^x for x <= 0 to 3e-6, and 2^-126 for less; NaN stays NaN. */
INLINE_WITH_BFLOAT16 __m512 exp2_negative(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126), x);
    __m512 whole = _mm512_roundscale_ps(x, 0), r = x - whole;
    __m512 p = r * 1.33335581e-3f + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + LN_2;
    return _mm512_scalef_ps(p * r + 1.0f, whole);
}

/* Which of 16 keys from number `key` of the tile's on lie in [low, high). */
INLINE_WITH_BFLOAT16 __mmask16 seen(int64_t key, int64_t low, int64_t high) {
    int64_t first = low - key, last = high - key;
    uint32_t below_first = first <= 0 ? 0 : first < LANES ? (1u << first) - 1 : 0xFFFF;
    uint32_t below_last = last <= 0 ? 0 : last < LANES ? (1u << last) - 1 : 0xFFFF;
    return (__mmask16)(below_last & ~below_first);
}

/* Makes weights of a row's scores against the keys from `from` on, and carries its softmax along. */
INLINE_WITH_BFLOAT16 void weigh(const Attention *a, Work *work, int64_t row, __m512bh *weights, __m512 *scores,
                                int64_t from) {
    int64_t low = work->sees_from[row] - from, high = work->sees_to[row] - from, vecs = a->head_dim / LANES;
    float scale = LOG2_E / __builtin_sqrtf((float)a->head_dim);
    __m512 best = _mm512_set1_ps(work->peak[row]);
    for (int group = 0; group < GROUPS; group++) {
        __mmask16 mask = seen(group * LANES, low, high);
        scores[group] = _mm512_mask_mul_ps(_mm512_set1_ps(NEVER), mask, scores[group], _mm512_set1_ps(scale));
        best = _mm512_max_ps(best, scores[group]);
    }
    float peak = largest_of((Vec)best);
    if (peak > work->peak[row]) {
        __m512 shrink = exp2_negative(_mm512_set1_ps(work->peak[row] - peak));
        work->total[row] *= shrink;
        for (int64_t v = 0; v < vecs; v++) work->sum[row * vecs + v] *= shrink;
        work->peak[row] = peak;
    }
    for (int group = 0; group < GROUPS; group++) {
        __mmask16 mask = seen(group * LANES, low, high);
        scores[group] = _mm512_maskz_mov_ps(mask, exp2_negative(scores[group] - work->peak[row]));
        work->total[row] += scores[group];
    }
    for (int i = 0; i < GROUPS / 2; i++) weights[i] = _mm512_cvtne2ps_pbh(scores[2 * i + 1], scores[2 * i]);
}

INLINE_WITH_BFLOAT16 void add_values(const Attention *a, Work *work, int64_t row, int64_t rows, int64_t d, int64_t vecs,
                                     int64_t count) {
    __m512 sums[PRODUCT_ROWS][PRODUCT_VECS];
    int64_t stride = a->head_dim / LANES;
    __m512 *at = work->sum + row * stride + d / LANES;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < vecs; v++) sums[r][v] = at[r * stride + v];
    const uint32_t *weights = (const uint32_t *)work->weight;
    add_products(sums, weights, KEYS / 2, work->value + d, a->head_dim, (count + 1) / 2, rows, vecs, NULL, 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < vecs; v++) at[r * stride + v] = sums[r][v];
}

/* A few rows, at most PRODUCT_ROWS, against the keys that are laid out. */
INLINE_WITH_BFLOAT16 void attend_rows(const Attention *a, Work *work, int64_t row, int64_t rows, int64_t from,
                                      int64_t count) {
    __m512 scores[PRODUCT_ROWS][PRODUCT_VECS];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < GROUPS; v++) scores[r][v] = _mm512_setzero_ps();
    int64_t pairs = a->head_dim / 2;
    add_products(scores, work->query + row * pairs, pairs, work->key, KEYS, pairs, rows, GROUPS, NULL, 0);
    for (int64_t r = 0; r < rows; r++) weigh(a, work, row + r, work->weight[r], scores[r], from);
    int64_t d = 0;
    for (; d + DIMS <= a->head_dim; d += DIMS) add_values(a, work, row, rows, d, DIMS / LANES, count);
    if (d < a->head_dim) add_values(a, work, row, rows, d, 2, count);
}

INLINE_WITH_BFLOAT16 void attend_key_head(const Attention *a, Work *work, int64_t row, int64_t last, int64_t from,
                                          int64_t count) {
    for (; row + PRODUCT_ROWS <= last; row += PRODUCT_ROWS) attend_rows(a, work, row, PRODUCT_ROWS, from, count);
    if (last - row == 5) attend_rows(a, work, row, 5, from, count);
    else if (last - row == 4) attend_rows(a, work, row, 4, from, count);
    else if (last - row == 3) attend_rows(a, work, row, 3, from, count);
    else if (last - row == 2) attend_rows(a, work, row, 2, from, count);
    else if (last - row == 1) attend_rows(a, work, row, 1, from, count);
}

INLINE_WITH_BFLOAT16 void store_rows(const Attention *a, const Tile *tile, Work *work) {
    int64_t row = 0, vecs = a->head_dim / LANES;
    for (int64_t token = tile->first; token < tile->last; token++) {
        uint16_t *to = (uint16_t *)a->output + ((start_of(a, tile->sequence) + token) * a->heads + tile->head) * a->head_dim;
        for (int64_t head = 0; head < tile->heads; head++, row++)
            for (int64_t v = 0; v < vecs; v++, to += LANES)
                store(to, (Vec)work->sum[row * vecs + v] / _mm512_reduce_add_ps(work->total[row]), BFLOAT16, LANES);
    }
}

INLINE_WITH_BFLOAT16 void store_partials(const Attention *a, const Tile *tile, Work *work) {
    float *at = tile->partial;
    for (int64_t row = 0; row < tile->heads; row++, at += partial_floats(a)) {
        at[0] = work->peak[row] * LN_2;
        at[1] = _mm512_reduce_add_ps(work->total[row]);
        memcpy(at + 2, work->sum + row * a->head_dim / LANES, (size_t)(4 * a->head_dim));
    }
}

/* Blocks lie apart, so the processor does not see by itself what comes next. */
INLINE void fetch_ahead(const Attention *a, const uint16_t **keys, int64_t count, int64_t offset) {
    for (int64_t key = 0; key < count; key++)
        for (int64_t d = 0; d < a->head_dim; d += 32) {
            __builtin_prefetch(keys[key] + offset + d);
            __builtin_prefetch(keys[key] + value_offset(a) + offset + d);
        }
}

WITH_BFLOAT16 void attend_bfloat16_tile(const void *context, int64_t index) {
    const Plan *plan = context;
    const Attention *a = plan->a;
    const Tile *tile = plan->tiles + index;
    const uint16_t *found[2][KEYS];
    int64_t key_heads = key_heads_of(a, tile), rows = tile->heads * (tile->last - tile->first) / key_heads;
    int64_t count = tile->to - tile->from < KEYS ? tile->to - tile->from : KEYS, next = 0;
    Work work;
    load_queries(a, tile, &work);
    find_keys(a, tile, tile->from, count, found[0]);
    for (int64_t from = tile->from, turn = 0; from < tile->to; from += KEYS, count = next, turn ^= 1) {
        next = tile->to - from - KEYS < KEYS ? tile->to - from - KEYS : KEYS;
        if (next > 0) find_keys(a, tile, from + KEYS, next, found[turn ^ 1]);
        for (int64_t head = 0; head < key_heads; head++) {
            lay_out_keys(a, &work, found[turn], count, head * a->head_dim);
            lay_out_values(a, &work, found[turn], count, head * a->head_dim);
            fetch_ahead(a, found[turn ^ 1], next, head * a->head_dim);
            attend_key_head(a, &work, head * rows, (head + 1) * rows, from, count);
        }
    }
    if (tile->partial) store_partials(a, tile, &work);
    else store_rows(a, tile, &work);
}

#else
int serves_bfloat16(const Attention *a) { return (void)a, 0; }
void attend_bfloat16_tile(const void *plan, int64_t index) { (void)plan, (void)index; } /* never called */
#endif
