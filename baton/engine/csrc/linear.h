/* y = x W^T in bfloat16 with sums in float32, for weights packed once, on processors with AVX512-BF16. */
#ifndef BATON_LINEAR_H
#define BATON_LINEAR_H

#include <stdint.h>

enum { PANEL = 64 };

/* What becomes of the sums: bfloat16; bfloat16 after adding a residual; float32; or bfloat16 of silu(gate) * up, half as
 * many columns as sums, where each panel holds 32 columns of the gate and then the same of the up projection. */
typedef enum { PLAIN, RESIDUAL, FLOAT_SUMS, SILU_GATED } Ending;

/* As Python passes it. x: [rows, inputs]. weight: as `pack` makes it. bias: float32 [columns], or 0. residual, output:
 * [rows, columns], half as wide where gated. columns: sums of a row, without the filling of the last panel. */
typedef struct {
    int64_t x, weight, bias, residual, output, rows, inputs, columns, ending, threads;
} Linear;

/* weight: bfloat16 [columns, inputs]; packed: as many panels as the columns need, each [inputs / 2][PANEL][2]. */
typedef struct {
    int64_t weight, packed, columns, inputs, threads;
} Packing;

void pack(const Packing *p);
void multiply(const Linear *l);

#endif
