/* Products of bfloat16 with sums in float32, by AVX512-BF16; whoever uses them asks `has_bfloat16_products` first.
 * WITH_BFLOAT16 is defined where the compiler knows the instructions. */
#ifndef BATON_PRODUCTS_H
#define BATON_PRODUCTS_H

#include <stdint.h>

#if defined(__x86_64__) && __GNUC__ >= 11
#include <immintrin.h>
#define WITH_BFLOAT16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define INLINE_WITH_BFLOAT16 static inline __attribute__((always_inline, target("arch=x86-64-v4,avx512bf16")))

/* The sums of so many rows times so many vectors stay in registers. */
enum { PRODUCT_ROWS = 6, PRODUCT_VECS = 4 };

static inline int has_bfloat16_products(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
}

/* sums[r][v] += x[r] times columns: x: `rows` rows of `pairs` pairs, `x_stride` apart. columns: [pairs][vecs * 16 columns],
 * one pair of each column, `stride` apart. `rows` and `vecs` have to be constants. For each pair `lines` cache lines from
 * `ahead` on are fetched, which somebody wants soon. */
INLINE_WITH_BFLOAT16 void add_products(__m512 (*sums)[PRODUCT_VECS], const uint32_t *x, int64_t x_stride,
                                       const uint32_t *columns, int64_t stride, int64_t pairs, int64_t rows, int64_t vecs,
                                       const char *ahead, int64_t lines) {
    for (int64_t pair = 0; pair < pairs; pair++, columns += stride) {
        __m512bh w[PRODUCT_VECS];
        for (int64_t line = 0; line < lines; line++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 4
        for (int64_t v = 0; v < vecs; v++) w[v] = (__m512bh)_mm512_loadu_si512(columns + 16 * v);
#pragma GCC unroll 6
        for (int64_t r = 0; r < rows; r++) {
            __m512bh both = (__m512bh)_mm512_set1_epi32((int)x[r * x_stride + pair]);
#pragma GCC unroll 4
            for (int64_t v = 0; v < vecs; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], both, w[v]);
        }
    }
}

#else
static inline int has_bfloat16_products(void) { return 0; }
#endif
#endif
