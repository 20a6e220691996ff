#include "pointwise.h"

#include "threads.h"
#include "vectors.h"

enum { TASK_NUMBERS = 16384 }; /* a task is as many rows as hold so many: sharing out less costs more than it saves */

INLINE int64_t rows_of_task(int64_t width) { return TASK_NUMBERS / width + 1; }

INLINE int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE Vec rounded(Vec value, Kind kind) {
    if (kind == FLOAT32) return value;
    return kind == BFLOAT16 ? (Vec)(to_bfloat16(value) << 16) : from_float16(to_float16(value));
}

INLINE void norm_row(const Norm *n, const char *x, char *output, Kind kind) {
    int64_t size = bytes_of(kind);
    Vec squares = {0};
    for (int64_t i = 0; i < n->width; i += LANES) {
        Vec value = load(x + i * size, kind, lanes_left(n->width, i));
        squares += value * value;
    }
    float epsilon;
    int32_t epsilon_bits = (int32_t)n->epsilon_bits;
    memcpy(&epsilon, &epsilon_bits, sizeof epsilon);
    float scale = 1.0f / __builtin_sqrtf(sum_of(squares) / (float)n->width + epsilon);
    for (int64_t i = 0; i < n->width; i += LANES) {
        int64_t lanes = lanes_left(n->width, i);
        Vec value = rounded(load(x + i * size, kind, lanes) * scale, kind);
        store(output + i * size, value * load((const char *)n->weight + i * size, kind, lanes), kind, lanes);
    }
}

INLINE void norm_as(const Norm *n, int64_t index, Kind kind) {
    int64_t rows = rows_of_task(n->width), size = bytes_of(kind);
    for (int64_t row = index * rows; row < lower((index + 1) * rows, n->rows); row++) {
        int64_t group = row / n->group, place = row % n->group * n->width;
        norm_row(n, (const char *)n->x + (group * n->stride + place) * size,
                 (char *)n->output + (group * n->output_stride + place) * size, kind);
    }
}

ON_WIDEST_UNITS static void norm_rows(const void *context, int64_t index) {
    const Norm *n = context;
    if (n->kind == BFLOAT16) norm_as(n, index, BFLOAT16);
    else if (n->kind == FLOAT16) norm_as(n, index, FLOAT16);
    else norm_as(n, index, FLOAT32);
}

void norm(const Norm *n) {
    int64_t rows = rows_of_task(n->width);
    share(norm_rows, n, (n->rows + rows - 1) / rows, n->threads);
}

INLINE void rotate_head(const Rotation *r, char *head, int64_t token, Kind kind) {
    int64_t half = r->head_dim / 2, size = bytes_of(kind);
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t lanes = lanes_left(half, i);
        Vec cos = load((const char *)r->cos + (token * half + i) * size, kind, lanes);
        Vec sin = load((const char *)r->sin + (token * half + i) * size, kind, lanes);
        Vec first = load(head + i * size, kind, lanes), second = load(head + (i + half) * size, kind, lanes);
        store(head + i * size, first * cos - second * sin, kind, lanes);
        store(head + (i + half) * size, second * cos + first * sin, kind, lanes);
    }
}

INLINE void rotate_as(const Rotation *r, int64_t index, Kind kind) {
    int64_t tokens = rows_of_task(r->heads * r->head_dim), size = bytes_of(kind);
    for (int64_t token = index * tokens; token < lower((index + 1) * tokens, r->tokens); token++)
        for (int64_t head = 0; head < r->heads; head++)
            rotate_head(r, (char *)r->x + (token * r->stride + head * r->head_dim) * size, token, kind);
}

ON_WIDEST_UNITS static void rotate_tokens(const void *context, int64_t index) {
    const Rotation *r = context;
    if (r->kind == BFLOAT16) rotate_as(r, index, BFLOAT16);
    else if (r->kind == FLOAT16) rotate_as(r, index, FLOAT16);
    else rotate_as(r, index, FLOAT32);
}

void rotate(const Rotation *r) {
    int64_t tokens = rows_of_task(r->heads * r->head_dim);
    share(rotate_tokens, r, (r->tokens + tokens - 1) / tokens, r->threads);
}

/* NaN is not equal to itself, so a row with one has its first in place of a peak. */
INLINE int64_t find_peak(const float *row, int64_t width) {
    Vec best = splat(-__builtin_inff());
    Ints is_nan = {0};
    int64_t last = width / LANES * LANES, at = 0;
    for (int64_t i = 0; i < last; i += LANES) {
        Vec value = load(row + i, FLOAT32, LANES);
        is_nan |= value != value;
        best = larger(best, value);
    }
    float peak = largest_of(best);
    int has_nan = 0;
    for (int lane = 0; lane < LANES; lane++) has_nan |= is_nan[lane];
    for (int64_t i = last; i < width; i++) {
        has_nan |= row[i] != row[i];
        peak = row[i] > peak ? row[i] : peak;
    }
    while (has_nan ? row[at] == row[at] : row[at] != peak) at++;
    return at;
}

ON_WIDEST_UNITS static void find_in_row(const void *context, int64_t index) {
    const Rows *r = context;
    const float *row = (const float *)r->values + index * r->width;
    int64_t at = find_peak(row, r->width);
    ((int64_t *)r->positions)[index] = at;
    ((float *)r->peaks)[index] = row[at];
}

void find_largest(const Rows *r) { share(find_in_row, r, r->rows, r->threads); }
