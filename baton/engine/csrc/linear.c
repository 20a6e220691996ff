#include "linear.h"

#include "threads.h"
#include "vectors.h"

/* A task is one panel of columns against up to TASK_ROWS rows: these stay in the second-level cache from panel to panel.
 * TILE_ROWS rows times four vectors of columns are summed in registers. */
enum { TILE_ROWS = 6, TASK_ROWS = 192, VECS = PANEL / LANES };

static void pack_panel(const void *context, int64_t panel) {
    const Packing *p = context;
    const uint16_t *weight = (const uint16_t *)p->weight;
    uint16_t *to = (uint16_t *)p->packed + panel * PANEL * p->inputs;
    for (int64_t column = 0; column < PANEL; column++) {
        int is_there = panel * PANEL + column < p->columns;
        const uint16_t *row = weight + (is_there ? (panel * PANEL + column) * p->inputs : 0);
        for (int64_t i = 0; i < p->inputs; i++) to[(i / 2 * PANEL + column) * 2 + i % 2] = is_there ? row[i] : 0;
    }
}

void pack(const Packing *p) { share(pack_panel, p, (p->columns + PANEL - 1) / PANEL, p->threads); }

#if defined(__x86_64__) && __GNUC__ >= 11
#include <immintrin.h>
#define WITH_BFLOAT16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define INLINE_WITH_BFLOAT16 static inline __attribute__((always_inline, target("arch=x86-64-v4,avx512bf16")))

int has_bfloat16_products(void) { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw"); }

INLINE_WITH_BFLOAT16 void sum_products(const Linear *l, const uint16_t *panel, int64_t row, int64_t rows, Vec (*sums)[VECS]) {
    __m512 acc[TILE_ROWS][VECS];
    const uint32_t *x = (const uint32_t *)l->x + row * l->inputs / 2;
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) acc[r][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < l->inputs / 2; pair++, panel += 2 * PANEL) {
        __m512bh w[VECS];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) w[v] = (__m512bh)_mm512_loadu_si512(panel + 2 * LANES * v);
#pragma GCC unroll 6
        for (int64_t r = 0; r < rows; r++) {
            __m512bh both = (__m512bh)_mm512_set1_epi32((int)x[r * (l->inputs / 2) + pair]);
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], both, w[v]);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) sums[r][v] = (Vec)acc[r][v];
}

INLINE_WITH_BFLOAT16 void store_gated(const Linear *l, int64_t row, int64_t panel, const Vec *sums) {
    uint16_t *to = (uint16_t *)l->output + row * (l->columns / 2) + panel * (PANEL / 2);
    for (int v = 0; v < VECS / 2; v++) {
        Vec gate = sums[v], size = (Vec)((Ints)gate & 0x7FFFFFFF), decay = exp_negative(-size);
        Vec sigmoid = choose(gate < 0, decay, splat(1)) / (1 + decay);
        store(to + v * LANES, gate * sigmoid * sums[v + VECS / 2], BFLOAT16, LANES);
    }
}

INLINE_WITH_BFLOAT16 void store_row(const Linear *l, int64_t row, int64_t panel, const Vec *sums) {
    for (int v = 0; v < VECS; v++) {
        int64_t column = panel * PANEL + v * LANES, at = row * l->columns + column, lanes = lanes_left(l->columns, column);
        if (lanes <= 0) return;
        Vec sum = sums[v];
        if (l->bias) sum += load((const float *)l->bias + column, FLOAT32, lanes);
        if (l->ending == FLOAT_SUMS) {
            store((float *)l->output + at, sum, FLOAT32, lanes);
            continue;
        }
        if (l->ending == RESIDUAL) sum += load((const uint16_t *)l->residual + at, BFLOAT16, lanes);
        store((uint16_t *)l->output + at, sum, BFLOAT16, lanes);
    }
}

INLINE_WITH_BFLOAT16 void multiply_rows(const Linear *l, int64_t panel, int64_t row, int64_t rows) {
    Vec sums[TILE_ROWS][VECS];
    sum_products(l, (const uint16_t *)l->weight + panel * PANEL * l->inputs, row, rows, sums);
    for (int64_t r = 0; r < rows; r++) {
        if (l->ending == SILU_GATED) store_gated(l, row + r, panel, sums[r]);
        else store_row(l, row + r, panel, sums[r]);
    }
}

WITH_BFLOAT16 static void multiply_panel(const void *context, int64_t index) {
    const Linear *l = context;
    int64_t panels = (l->columns + PANEL - 1) / PANEL, panel = index % panels, row = index / panels * TASK_ROWS;
    int64_t last = row + TASK_ROWS < l->rows ? row + TASK_ROWS : l->rows;
    for (; row + TILE_ROWS <= last; row += TILE_ROWS) multiply_rows(l, panel, row, TILE_ROWS);
    if (last - row == 5) multiply_rows(l, panel, row, 5);
    else if (last - row == 4) multiply_rows(l, panel, row, 4);
    else if (last - row == 3) multiply_rows(l, panel, row, 3);
    else if (last - row == 2) multiply_rows(l, panel, row, 2);
    else if (last - row == 1) multiply_rows(l, panel, row, 1);
}

void multiply(const Linear *l) {
    int64_t panels = (l->columns + PANEL - 1) / PANEL;
    share(multiply_panel, l, panels * ((l->rows + TASK_ROWS - 1) / TASK_ROWS), l->threads);
}

#else
int has_bfloat16_products(void) { return 0; }
void multiply(const Linear *l) { (void)l; } /* never called: nobody packs without the products */
#endif
