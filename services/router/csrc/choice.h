/* Which workers the policy `predicted` chooses: `policies/predicted.py` says why, and this finds the same ones. */
#pragma once
#include "prediction.h"

enum Mode { AUTO, ALWAYS, NEVER };
enum { LOCAL = -1 };

/* has_tpot, has_session: whether there is an objective for later tokens, and a session; `session` is its hash. */
typedef struct {
    Wanted wanted;
    enum Mode mode;
    int has_tpot, has_session;
    double waited_s, ttft_s, tpot_s;
    uint64_t session, ordinal;
} Demand;

typedef struct {
    ptrdiff_t prefill; /* LOCAL: the decode worker computes the prompt */
    size_t decode;
} Choice;

/* decode: at least one worker. costs_s, strains: room for as many as the larger pool has. */
Choice choose(const Pool *prefill, const Pool *decode, const Demand *demand, double *costs_s, double *strains);
