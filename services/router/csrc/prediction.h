/* The terms of a prediction, one worker each: `prediction.py` says what they mean, and these give the same bits. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* The figures of a worker, in the order of `candidates.Candidates`. */
enum Figure {
    QUEUED_TOKENS, QUEUED_S, SEQUENCES, CONTEXT_TOKENS, AVAILABLE_BLOCKS, QUEUED_SEQUENCES, CACHED_TOKENS,
    LOCAL_PREFILL_S, KV_BYTES_PER_TOKEN, BLOCK_TOKENS, MAX_RUNNING, HOST_KEY, PREFILL_TOKENS_PER_S, DECODE_STEP_S, COPY_BYTES_PER_S,
    PREFILL_S_PER_PAIR, DECODE_S_PER_SEQUENCE, DECODE_S_PER_CONTEXT_TOKEN, PREFILL_PASS_S, HANDOFF_LATENCY_S,
    COST_PER_HOUR, PREFILL_CHUNK_TOKENS, PREFILL_CHUNK_S, SAME_HOST_BYTES_PER_S, SAME_HOST_LATENCY_S,
    STEP_SPREAD, HANDOFF_SPREAD, FIGURES
};

/* One role's workers: figure f of worker i is figures[f * count + i]. */
typedef struct {
    const double *figures;
    const uint64_t *keys;
    size_t count;
} Pool;

typedef struct {
    double prompt_tokens, blocks, choices;
} Wanted;

static inline double figure(const Pool *p, enum Figure f, size_t i) { return p->figures[f * p->count + i]; }

static inline double larger(double a, double b) { return a > b ? a : b; }

static inline double smaller(double a, double b) { return a < b ? a : b; }

static inline double queue_s(const Pool *p, size_t i) {
    return larger(figure(p, QUEUED_S, i), figure(p, QUEUED_TOKENS, i) / figure(p, PREFILL_TOKENS_PER_S, i));
}

static inline double turn_s(const Pool *p, size_t i, double prompt_s) {
    return smaller(queue_s(p, i), figure(p, SEQUENCES, i) * prompt_s);
}

static inline double prefill_tokens(const Pool *p, size_t i, const Wanted *w) {
    return larger(1.0, w->prompt_tokens - figure(p, CACHED_TOKENS, i));
}

static inline double prefill_s(const Pool *p, size_t i, const Wanted *w) {
    double tokens = prefill_tokens(p, i, w), context_tokens = w->prompt_tokens - tokens;
    double attention_s = tokens * (context_tokens + tokens / 2) * figure(p, PREFILL_S_PER_PAIR, i);
    double computed_s = tokens / figure(p, PREFILL_TOKENS_PER_S, i) + attention_s;
    double shares = larger(tokens / figure(p, PREFILL_CHUNK_TOKENS, i), computed_s / figure(p, PREFILL_CHUNK_S, i));
    return larger(1.0, ceil(shares)) * figure(p, PREFILL_PASS_S, i) + computed_s;
}

static inline double batch_step_s(const Pool *p, size_t i, double sequences, double context_tokens) {
    double further_s = (sequences - 1) * figure(p, DECODE_S_PER_SEQUENCE, i);
    return figure(p, DECODE_STEP_S, i) + further_s + context_tokens * figure(p, DECODE_S_PER_CONTEXT_TOKEN, i);
}

static inline double reserve_s(const Pool *p, size_t i, const Wanted *w) {
    double lacking_blocks = larger(0.0, w->blocks - figure(p, AVAILABLE_BLOCKS, i));
    return lacking_blocks * batch_step_s(p, i, figure(p, SEQUENCES, i), figure(p, CONTEXT_TOKENS, i));
}

static inline double place_s(const Pool *p, size_t i, const Wanted *w) {
    double lacking_places = larger(0.0, figure(p, SEQUENCES, i) + w->choices - figure(p, MAX_RUNNING, i));
    double returned_s = lacking_places * batch_step_s(p, i, figure(p, SEQUENCES, i), figure(p, CONTEXT_TOKENS, i));
    return larger(returned_s, reserve_s(p, i, w));
}

static inline double step_s(const Pool *p, size_t i, const Wanted *w) {
    return batch_step_s(p, i, figure(p, SEQUENCES, i) + w->choices, figure(p, CONTEXT_TOKENS, i) + w->prompt_tokens);
}

static inline double handoff_s(const Pool *p, size_t i, const Pool *d, size_t j, const Wanted *w, double prompt_s) {
    int is_near = figure(d, HOST_KEY, j) != 0 && figure(p, HOST_KEY, i) == figure(d, HOST_KEY, j);
    enum Figure bytes_per_s = is_near ? SAME_HOST_BYTES_PER_S : COPY_BYTES_PER_S;
    double latency_s = figure(p, is_near ? SAME_HOST_LATENCY_S : HANDOFF_LATENCY_S, i);
    double bandwidth = smaller(figure(p, bytes_per_s, i), figure(d, bytes_per_s, j));
    double lacking_tokens = larger(0.0, w->prompt_tokens - figure(d, CACHED_TOKENS, j));
    double transfer_s = lacking_tokens * figure(d, KV_BYTES_PER_TOKEN, j) / bandwidth;
    double left_over_s = larger(transfer_s - prompt_s, transfer_s / larger(1.0, w->blocks));
    return latency_s + left_over_s;
}
