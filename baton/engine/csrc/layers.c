#include "layers.h"

#include "attention.h"
#include "linear.h"
#include "pointwise.h"
#include "vectors.h"

static void norm_hidden(const Pass *p, int64_t weight) {
    norm(&(Norm){.x = p->hidden, .weight = weight, .output = p->normed, .rows = p->tokens, .width = p->hidden_size, .group = 1,
                 .stride = p->hidden_size, .output_stride = p->hidden_size, .epsilon_bits = p->epsilon_bits, .kind = BFLOAT16,
                 .threads = p->threads});
}

/* In place, `heads` heads of each token from `x` on. */
static void norm_heads(const Pass *p, int64_t x, int64_t heads, int64_t stride, int64_t weight) {
    norm(&(Norm){.x = x, .weight = weight, .output = x, .rows = p->tokens * heads, .width = p->head_dim, .group = heads,
                 .stride = stride, .output_stride = stride, .epsilon_bits = p->epsilon_bits, .kind = BFLOAT16,
                 .threads = p->threads});
}

static void add_product(const Pass *p, int64_t x, int64_t inputs, int64_t weight, int64_t bias) {
    multiply(&(Linear){.x = x, .weight = weight, .bias = bias, .residual = p->hidden, .output = p->hidden, .rows = p->tokens,
                       .inputs = inputs, .columns = p->hidden_size, .ending = RESIDUAL, .threads = p->threads});
}

static int attend_heads(const Pass *p, const Layer *layer, int64_t index) {
    int64_t columns = (p->heads + 2 * p->kv_heads) * p->head_dim, size = bytes_of(BFLOAT16);
    int64_t key = p->qkv + p->heads * p->head_dim * size, value = key + p->kv_heads * p->head_dim * size;
    multiply(&(Linear){.x = p->normed, .weight = layer->qkv, .bias = layer->qkv_bias, .output = p->qkv, .rows = p->tokens,
                       .inputs = p->hidden_size, .columns = columns, .ending = PLAIN, .threads = p->threads});
    if (layer->query_norm) norm_heads(p, p->qkv, p->heads, columns, layer->query_norm);
    if (layer->key_norm) norm_heads(p, key, p->kv_heads, columns, layer->key_norm);
    rotate(&(Rotation){.x = p->qkv, .cos = p->cos, .sin = p->sin, .tokens = p->tokens, .stride = columns,
                       .heads = p->heads + p->kv_heads, .head_dim = p->head_dim, .kind = BFLOAT16, .threads = p->threads});
    return attend(&(Attention){
        .query = p->qkv, .query_stride = columns, .key = key, .key_stride = columns, .value = value, .value_stride = columns,
        .output = p->attended, .kv = p->kv, .query_start = p->query_start, .context_lens = p->context_lens, .tables = p->tables,
        .table_width = p->table_width, .slots = p->slots, .sequences = p->sequences, .tokens = p->tokens, .heads = p->heads,
        .kv_heads = p->kv_heads, .head_dim = p->head_dim, .layers = p->count, .layer = index, .block_size = p->block_size,
        .window = layer->window, .kind = BFLOAT16, .threads = p->threads});
}

int run_layers(const Pass *p) {
    const Layer *layers = (const Layer *)p->layers;
    for (int64_t i = 0; i < p->count; i++) {
        norm_hidden(p, layers[i].input_norm);
        if (!attend_heads(p, layers + i, i)) return 0;
        add_product(p, p->attended, p->heads * p->head_dim, layers[i].output, layers[i].output_bias);
        norm_hidden(p, layers[i].post_attention_norm);
        multiply(&(Linear){.x = p->normed, .weight = layers[i].gate, .output = p->gated, .rows = p->tokens,
                           .inputs = p->hidden_size, .columns = 2 * p->width, .ending = SILU_GATED, .threads = p->threads});
        add_product(p, p->gated, p->width, layers[i].down, layers[i].down_bias);
    }
    return 1;
}
