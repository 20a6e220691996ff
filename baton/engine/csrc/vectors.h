/* Sixteen numbers at a time: the compiler makes of a vector what the processor has. Memory holds float32, bfloat16 or
 * float16; sums are always float32. */
#ifndef BATON_VECTORS_H
#define BATON_VECTORS_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__)
#define ON_WIDEST_UNITS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ON_WIDEST_UNITS
#endif

enum { LANES = 16 };
typedef float Vec __attribute__((vector_size(64), may_alias));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

typedef enum { FLOAT32, BFLOAT16, FLOAT16 } Kind;

INLINE int64_t bytes_of(Kind kind) { return kind == FLOAT32 ? 4 : 2; }

INLINE Vec splat(float value) { return (Vec){0} + value; }

INLINE Vec choose(Ints mask, Vec yes, Vec no) { return (Vec)(((Ints)yes & mask) | ((Ints)no & ~mask)); }

INLINE Vec larger(Vec a, Vec b) { return choose(a > b, a, b); }

/* Exact for every number, infinity and NaN: the exponent is moved by a product, so subnormals need no case. */
INLINE Vec from_float16(Bits half) {
    Bits sign = (half & 0x8000) << 16, rest = (half & 0x7FFF) << 13;
    Bits special = (Bits)(rest >= 0x0F800000) & 0x7F800000;
    Vec scaled = (Vec)rest * 0x1p112f;
    return (Vec)((Bits)scaled | special | sign);
}

/* To nearest, ties to even; what is too large becomes infinity. */
INLINE Bits to_float16(Vec value) {
    Bits sign = (Bits)value & 0x80000000;
    Vec size = (Vec)((Bits)value ^ sign);
    Bits subnormal = (Bits)(size + 0.5f) - 0x3F000000;
    Bits bits = (Bits)size;
    Bits normal = (bits + 0xC8000FFF + ((bits >> 13) & 1)) >> 13;
    Bits result = (Bits)choose((Ints)(bits < 0x38800000), (Vec)subnormal, (Vec)normal);
    result = (Bits)choose((Ints)(bits >= 0x47800000), (Vec)((Bits){0} + 0x7C00), (Vec)result);
    result = (Bits)choose((Ints)(bits > 0x7F800000), (Vec)((Bits){0} + 0x7E00), (Vec)result);
    return result | sign >> 16;
}

INLINE Bits to_bfloat16(Vec value) {
    Bits bits = (Bits)value;
    Bits rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    Bits is_nan = (Bits)((bits & 0x7FFFFFFF) > 0x7F800000);
    return (rounded & ~is_nan) | (0x7FC0 & is_nan);
}

/* `count` numbers (at most 16) from `at`, zeros behind them. */
INLINE Vec load(const void *at, Kind kind, int64_t count) {
    int64_t bytes = count * bytes_of(kind);
    if (kind == FLOAT32) {
        Vec value = {0};
        if (count == LANES) memcpy(&value, at, sizeof value);
        else memcpy(&value, at, (size_t)bytes);
        return value;
    }
    Halves halves = {0};
    if (count == LANES) memcpy(&halves, at, sizeof halves);
    else memcpy(&halves, at, (size_t)bytes);
    Bits bits = __builtin_convertvector(halves, Bits);
    return kind == BFLOAT16 ? (Vec)(bits << 16) : from_float16(bits);
}

INLINE void store(void *at, Vec value, Kind kind, int64_t count) {
    if (kind == FLOAT32) {
        if (count == LANES) memcpy(at, &value, sizeof value);
        else memcpy(at, &value, (size_t)(4 * count));
        return;
    }
    Halves halves = __builtin_convertvector(kind == BFLOAT16 ? to_bfloat16(value) : to_float16(value), Halves);
    if (count == LANES) memcpy(at, &halves, sizeof halves);
    else memcpy(at, &halves, (size_t)(2 * count));
}

INLINE int64_t lanes_left(int64_t size, int64_t at) { return size - at < LANES ? size - at : LANES; }

/* e^x for x <= 0 to float32's precision, and 0 to within 2e-38 far below; NaN stays NaN. Cephes' expf. */
INLINE Vec exp_negative(Vec x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = choose(x < -87.0f, splat(-87.0f), x);
    Vec shifted = x * 1.44269504f + magic;
    Vec n = shifted - magic;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Bits power = ((Bits)shifted - 0x4B400000 + 127) << 23;
    return p * (Vec)power;
}

#define PAIR(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
INLINE Vec fold8(Vec a, Vec b) {
    return PAIR(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           PAIR(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
INLINE Vec fold4(Vec a, Vec b) {
    return PAIR(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           PAIR(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
INLINE Vec fold2(Vec a, Vec b) {
    return PAIR(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           PAIR(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
INLINE Vec fold1(Vec a, Vec b) {
    return PAIR(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           PAIR(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/* The sum of each of 16 vectors, in order; overwrites them. Four times cheaper than 16 sums for themselves. */
INLINE Vec sums_of(Vec *v) {
    for (int i = 0; i < 8; i++) v[i] = fold8(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 4; i++) v[i] = fold4(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 2; i++) v[i] = fold2(v[2 * i], v[2 * i + 1]);
    return fold1(v[0], v[1]);
}

INLINE float sum_of(Vec v) {
    v = fold8(v, v);
    v = fold4(v, v);
    v = fold2(v, v);
    return fold1(v, v)[0];
}

INLINE float largest_of(Vec v) {
    v = larger(v, __builtin_shuffle(v, (Ints){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
    v = larger(v, __builtin_shuffle(v, (Ints){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
    v = larger(v, __builtin_shuffle(v, (Ints){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
    return v[0] > v[1] ? v[0] : v[1];
}

#endif
