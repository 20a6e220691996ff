/* Paged causal attention; see baton/engine/attention/base.py for what is computed. */
#ifndef BATON_ATTENTION_H
#define BATON_ATTENTION_H

#include <stdint.h>

enum { MAX_HEAD_DIM = 256 };

/* One layer of one step, as Python passes it: numbers and addresses, each eight bytes. Strides are in elements from
 * one token to the next. window: 0 where a token sees all that precedes it. kind: Kind of all but the tables. */
typedef struct {
    int64_t query, query_stride, key, key_stride, value, value_stride, output, kv;
    int64_t query_start, context_lens, tables, table_width, slots;
    int64_t sequences, tokens, heads, kv_heads, head_dim, layers, layer, block_size, window, kind, threads;
} Attention;

static inline int64_t start_of(const Attention *a, int64_t sequence) { return ((const int32_t *)a->query_start)[sequence]; }
static inline int64_t context_of(const Attention *a, int64_t sequence) { return ((const int32_t *)a->context_lens)[sequence]; }

/* Writes the new keys and values to the pool, then attends. Returns 0 where memory ran out. */
int attend(const Attention *a);

#endif
