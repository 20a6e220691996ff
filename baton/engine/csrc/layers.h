/* All layers of a model in one call, in bfloat16 with packed weights. */
#ifndef BATON_LAYERS_H
#define BATON_LAYERS_H

#include <stdint.h>

/* Addresses of one layer's weights, 0 for those that it does not have; window: see Attention. */
typedef struct {
    int64_t input_norm, qkv, qkv_bias, query_norm, key_norm, output, output_bias;
    int64_t post_attention_norm, gate, down, down_bias, window;
} Layer;

/* As Python passes it. layers: Layer [count]. hidden: bfloat16 [tokens, hidden_size], replaced by the last layer's output.
 * normed, qkv, attended, gated: room for what is in between, [tokens, as wide as it is]. cos, sin: see Rotation; the rest
 * is as in Attention. */
typedef struct {
    int64_t layers, count, hidden_size, heads, kv_heads, head_dim, width, epsilon_bits;
    int64_t hidden, normed, qkv, attended, gated, cos, sin, kv;
    int64_t query_start, context_lens, tables, table_width, slots, sequences, tokens, block_size, threads;
} Pass;

/* Returns 0 where memory ran out. */
int run_layers(const Pass *p);

#endif
