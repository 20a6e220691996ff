/* What happens to each token by itself between the products and behind them. */
#ifndef BATON_POINTWISE_H
#define BATON_POINTWISE_H

#include <stdint.h>

/* RMSNorm of `rows` rows of `width`, rounded to `kind` before and after the weight, as Hugging Face's models do.
 * The rows of a group of `group` lie next to each other, and one group from the next `stride` elements; `x` may be
 * `output`. epsilon_bits: those of a float32. */
typedef struct {
    int64_t x, weight, output, rows, width, group, stride, output_stride, epsilon_bits, kind, threads;
} Norm;

/* Rotates the first `heads` heads of each token in place; dimension i pairs with i + head_dim / 2. cos, sin: `kind`
 * [tokens, head_dim / 2]. stride: elements from one token to the next. */
typedef struct {
    int64_t x, cos, sin, tokens, stride, heads, head_dim, kind, threads;
} Rotation;

/* The largest number of each row, and where it is: the first of equals. NaN counts as the largest. values: float32
 * [rows, width]; positions: int64 [rows]; peaks: float32 [rows]. */
typedef struct {
    int64_t values, positions, peaks, rows, width, threads;
} Rows;

void norm(const Norm *n);
void rotate(const Rotation *r);
void find_largest(const Rows *r);

#endif
