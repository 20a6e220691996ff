#include "linear.h"

#include "products.h"
#include "threads.h"
#include "vectors.h"

/* A task is one panel of columns against up to TASK_ROWS rows: these stay in the second-level cache from panel to panel. */
enum { TASK_ROWS = 192, VECS = PANEL / LANES };

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

#ifdef WITH_BFLOAT16

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

/* While a panel is used again from the cache, memory can bring the one that this thread is likely to take next. */
INLINE_WITH_BFLOAT16 void multiply_rows(const Linear *l, int64_t panel, int64_t row, int64_t rows, const char *ahead,
                                        int64_t lines) {
    __m512 sums[PRODUCT_ROWS][VECS];
    int64_t pairs = l->inputs / 2;
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) sums[r][v] = _mm512_setzero_ps();
    const uint32_t *x = (const uint32_t *)l->x + row * pairs, *weight = (const uint32_t *)l->weight + panel * PANEL * pairs;
    add_products(sums, x, pairs, weight, PANEL, pairs, rows, VECS, ahead, lines);
    for (int64_t r = 0; r < rows; r++) {
        if (l->ending == SILU_GATED) store_gated(l, row + r, panel, (const Vec *)sums[r]);
        else store_row(l, row + r, panel, (const Vec *)sums[r]);
    }
}

INLINE_WITH_BFLOAT16 void multiply_few(const Linear *l, int64_t panel, int64_t row, int64_t rows, const char *ahead,
                                       int64_t lines) {
    switch (rows) {
    case 6: return multiply_rows(l, panel, row, 6, ahead, lines);
    case 5: return multiply_rows(l, panel, row, 5, ahead, lines);
    case 4: return multiply_rows(l, panel, row, 4, ahead, lines);
    case 3: return multiply_rows(l, panel, row, 3, ahead, lines);
    case 2: return multiply_rows(l, panel, row, 2, ahead, lines);
    case 1: return multiply_rows(l, panel, row, 1, ahead, lines);
    }
}

WITH_BFLOAT16 static void multiply_panel(const void *context, int64_t index) {
    const Linear *l = context;
    int64_t panels = (l->columns + PANEL - 1) / PANEL, panel = index % panels, row = index / panels * TASK_ROWS;
    int64_t last = row + TASK_ROWS < l->rows ? row + TASK_ROWS : l->rows;
    int64_t passes = (last - row + PRODUCT_ROWS - 1) / PRODUCT_ROWS, pair_lines = PANEL * 4 / 64, fetched = 0;
    const char *ahead = (const char *)l->weight + (panel + l->threads) * PANEL * l->inputs * 2;
    for (int64_t pass = 0, rows; pass < passes; pass++, row += rows) {
        int64_t left = passes - pass, is_fetching = pass > 0 && panel + l->threads < panels;
        int64_t lines = is_fetching ? (pair_lines - fetched + left - 1) / left : 0;
        rows = (last - row + left - 1) / left;
        multiply_few(l, panel, row, rows, ahead + fetched * 64 * l->inputs / 2, lines);
        fetched += lines;
    }
}

void multiply(const Linear *l) {
    int64_t panels = (l->columns + PANEL - 1) / PANEL;
    share(multiply_panel, l, panels * ((l->rows + TASK_ROWS - 1) / TASK_ROWS), l->threads);
}

#else
void multiply(const Linear *l) { (void)l; } /* never called: nobody packs without the products */
#endif
