#include "choice.h"

#include <math.h>

static const double LOAD_BOUND = 1.25, LOCAL_MEMORY_S = 4.0, TOKENS_AHEAD = 32, SHORT_ANSWER_TOKENS = 8;
static const double WORK_WEIGHT = 16.0, HARM = 0.03, TTFT_SHARE = 0.5, TPOT_SHARE = 0.8, PLACES_SHARE = 0.8, MOST_SHARE = 0.95;

/* As `affinity.scores`. */
static uint64_t score(uint64_t session, uint64_t worker) {
    uint64_t mixed = (worker ^ session) * 0x9E3779B97F4A7C15ULL;
    mixed ^= mixed >> 32;
    mixed *= 0x9E3779B97F4A7C15ULL;
    return mixed ^ mixed >> 32;
}

/* As `affinity.within_bound` has it: who carries as many requests takes no more. */
static double bounded_sequences(const Pool *p) {
    double sequences = 0;
    for (size_t i = 0; i < p->count; i++) sequences += figure(p, SEQUENCES, i);
    return ceil(LOAD_BOUND * (sequences + 1) / (double)p->count);
}

/* The one of least cost; among equals the session's own, or the next in turn. */
static size_t least(const Pool *p, const Demand *demand, const double *costs_s) {
    double lowest_s = costs_s[0];
    size_t equals = 0, found = p->count;
    for (size_t i = 1; i < p->count; i++) lowest_s = smaller(lowest_s, costs_s[i]);
    for (size_t i = 0; i < p->count; i++) equals += costs_s[i] == lowest_s;
    if (!equals) return 0; /* the least is no number: figures beyond all measure */
    uint64_t turn = demand->ordinal % equals, highest = 0;
    for (size_t i = 0; i < p->count; i++) {
        if (costs_s[i] != lowest_s) continue;
        if (!demand->has_session) {
            if (!turn--) return i;
        } else {
            uint64_t own = score(demand->session, p->keys[i]);
            if (found == p->count || own > highest) highest = own, found = i;
        }
    }
    return found;
}

static double prompt_cost_s(const Pool *p, size_t i, const Wanted *w) {
    double prompt_s = prefill_s(p, i, w);
    return turn_s(p, i, prompt_s) + WORK_WEIGHT * prompt_s;
}

static double decode_cost_s(const Pool *p, size_t i, const Pool *d, size_t j, const Wanted *w) {
    double second_s = handoff_s(p, i, d, j, w, prefill_s(p, i, w));
    return place_s(d, j, w) + queue_s(d, j) + second_s + SHORT_ANSWER_TOKENS * step_s(d, j, w);
}

static double local_cost_s(const Pool *d, size_t j, const Wanted *w) {
    double prompt_s = prefill_s(d, j, w), waiting_s = larger(0.0, reserve_s(d, j, w) - prompt_s);
    double work_s = (WORK_WEIGHT + HARM * figure(d, SEQUENCES, j)) * prompt_s;
    return queue_s(d, j) + waiting_s + work_s + TOKENS_AHEAD * step_s(d, j, w);
}

static double pressure(const Demand *demand, double first_token_s, double tpot_s) {
    double waited_s = demand->waited_s < demand->ttft_s ? demand->waited_s : 0.0;
    return larger((waited_s + first_token_s) / (TTFT_SHARE * demand->ttft_s), tpot_s / (TPOT_SHARE * demand->tpot_s));
}

static double slower_by(const Pool *d, size_t j, double prompt_s) {
    double share = (figure(d, LOCAL_PREFILL_S, j) + prompt_s) / LOCAL_MEMORY_S;
    return 1 / (1 - smaller(share, MOST_SHARE));
}

static double fullness(const Pool *d, size_t j, double prompt_s) {
    double places = PLACES_SHARE * larger(1.0, figure(d, MAX_RUNNING, j));
    return slower_by(d, j, prompt_s) * figure(d, SEQUENCES, j) / places;
}

static double tpot_s(const Pool *d, size_t j, const Wanted *w, double prompt_s) {
    double slower = slower_by(d, j, prompt_s);
    double grown = slower * figure(d, SEQUENCES, j), context_tokens = slower * figure(d, CONTEXT_TOKENS, j);
    double long_s = slower * batch_step_s(d, j, grown + w->choices, context_tokens + w->prompt_tokens);
    double short_s = step_s(d, j, w) + (queue_s(d, j) + prompt_s) / TOKENS_AHEAD;
    return larger(long_s, short_s);
}

static double local_pressure(const Pool *d, size_t j, const Demand *demand) {
    const Wanted *w = &demand->wanted;
    double prompt_s = prefill_s(d, j, w), token_s = tpot_s(d, j, w, prompt_s), full = fullness(d, j, prompt_s);
    int is_free = token_s <= TPOT_SHARE * demand->tpot_s && full <= 1 && place_s(d, j, w) == 0;
    return is_free ? larger(pressure(demand, queue_s(d, j) + prompt_s, token_s), full) : INFINITY;
}

static double handoff_pressure(const Pool *p, size_t i, const Pool *d, size_t j, const Demand *demand) {
    const Wanted *w = &demand->wanted;
    double prompt_s = prefill_s(p, i, w), first_token_s = turn_s(p, i, prompt_s) + larger(prompt_s, reserve_s(d, j, w));
    return pressure(demand, first_token_s, tpot_s(d, j, w, 0.0));
}

/* How far a decode worker is beyond the objectives: 1 is as much as they allow. */
static double strain_of(const Pool *d, size_t j, const Demand *demand) {
    double wait = place_s(d, j, &demand->wanted) / (TTFT_SHARE * demand->ttft_s);
    return larger(wait, tpot_s(d, j, &demand->wanted, 0.0) / demand->tpot_s);
}

/* Whether it is beyond them without the sequences whose prompts still queue. */
static int is_late_already(const Pool *d, size_t j, const Demand *demand) {
    double present[FIGURES];
    for (int f = 0; f < FIGURES; f++) present[f] = figure(d, (enum Figure)f, j);
    present[SEQUENCES] -= present[QUEUED_SEQUENCES];
    present[CONTEXT_TOKENS] *= present[SEQUENCES] / larger(1.0, figure(d, SEQUENCES, j));
    Pool alone = {present, d->keys + j, 1};
    return !(strain_of(&alone, 0, demand) <= 1);
}

/* As `_open`: who is not open costs more than anything. strains: room for as many. */
static void close_costs(const Pool *d, const Demand *demand, double *costs_s, double *strains) {
    int is_kept = 0, is_attainable = 0, is_late = 0;
    double most = 0;
    for (size_t j = 0; j < d->count; j++) {
        double alone_s = batch_step_s(d, j, demand->wanted.choices, demand->wanted.prompt_tokens);
        strains[j] = strain_of(d, j, demand);
        is_kept |= strains[j] <= 1;
        is_attainable |= alone_s <= demand->tpot_s;
        most = larger(most, strains[j]);
    }
    for (size_t j = 0; j < d->count && !is_kept && !is_late; j++) is_late = is_late_already(d, j, demand);
    if (!is_kept && !(is_attainable && is_late)) return;
    for (size_t j = 0; j < d->count; j++)
        if (is_kept ? !(strains[j] <= 1) : strains[j] != most) costs_s[j] = INFINITY;
}

static int is_near(const Pool *d, size_t j, const double *costs_s, double most_sequences) {
    return costs_s[j] < INFINITY && figure(d, SEQUENCES, j) < most_sequences;
}

/* As `affinity.favourite`; `d->count` where nobody is near. */
static size_t favourite(const Pool *d, const Demand *demand, const double *costs_s, double most_sequences) {
    size_t best = d->count;
    uint64_t highest = 0;
    for (size_t j = 0; j < d->count; j++) {
        uint64_t own = score(demand->session, d->keys[j]);
        if (is_near(d, j, costs_s, most_sequences) && (best == d->count || own > highest)) highest = own, best = j;
    }
    return best;
}

static size_t decoding(const Pool *p, size_t first, const Pool *d, const Demand *demand, double *costs_s, double *strains) {
    for (size_t j = 0; j < d->count; j++) costs_s[j] = decode_cost_s(p, first, d, j, &demand->wanted);
    if (demand->has_tpot) close_costs(d, demand, costs_s, strains);
    double most = bounded_sequences(d);
    size_t own = demand->has_session ? favourite(d, demand, costs_s, most) : d->count;
    if (own == d->count) return least(d, demand, costs_s);
    int is_known_elsewhere = 0;
    for (size_t j = 0; j < d->count; j++) {
        int knows_more = figure(d, CACHED_TOKENS, j) > figure(d, CACHED_TOKENS, own) && is_near(d, j, costs_s, most);
        is_known_elsewhere |= knows_more;
        if (!knows_more) costs_s[j] = INFINITY;
    }
    return is_known_elsewhere ? least(d, demand, costs_s) : own;
}

/* The decode worker to compute the prompt, among those that this presses less than a hand-off from `first` would; LOCAL
 * where none is. Without prefill workers, `p` is NULL, among all. */
static ptrdiff_t computing(const Pool *p, size_t first, const Pool *d, const Demand *demand, double *costs_s) {
    int is_any = 0;
    for (size_t j = 0; j < d->count; j++) {
        int is_better = !p || local_pressure(d, j, demand) < handoff_pressure(p, first, d, j, demand);
        costs_s[j] = is_better ? local_cost_s(d, j, &demand->wanted) : INFINITY;
        is_any |= is_better;
    }
    return is_any ? (ptrdiff_t)least(d, demand, costs_s) : LOCAL;
}

Choice choose(const Pool *p, const Pool *d, const Demand *demand, double *costs_s, double *strains) {
    if (!p->count || demand->mode == NEVER) return (Choice){LOCAL, (size_t)computing(NULL, 0, d, demand, costs_s)};
    for (size_t i = 0; i < p->count; i++) costs_s[i] = prompt_cost_s(p, i, &demand->wanted);
    size_t first = least(p, demand, costs_s), second = decoding(p, first, d, demand, costs_s, strains);
    ptrdiff_t local = LOCAL;
    if (demand->mode == AUTO && demand->has_tpot) local = computing(p, first, d, demand, costs_s);
    return local == LOCAL ? (Choice){(ptrdiff_t)first, second} : (Choice){LOCAL, (size_t)local};
}
