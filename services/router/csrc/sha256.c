#include "sha256.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

enum { ROUNDS = 64, WORDS_A_BLOCK = 16 };

const uint32_t SHA256_BEGIN[SHA256_WORDS] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t CONSTANTS[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static inline uint32_t turned(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static inline uint32_t big_endian(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

void sha256_compress_portably(uint32_t *state, const uint8_t *block) {
    uint32_t w[ROUNDS], s[SHA256_WORDS];
    for (int t = 0; t < WORDS_A_BLOCK; t++) w[t] = big_endian(block + 4 * t);
    for (int t = WORDS_A_BLOCK; t < ROUNDS; t++) {
        uint32_t near = turned(w[t - 2], 17) ^ turned(w[t - 2], 19) ^ w[t - 2] >> 10;
        uint32_t far = turned(w[t - 15], 7) ^ turned(w[t - 15], 18) ^ w[t - 15] >> 3;
        w[t] = near + w[t - 7] + far + w[t - 16];
    }
    memcpy(s, state, sizeof s);
#pragma GCC unroll 64
    for (int t = 0; t < ROUNDS; t++) { /* the eight words change places with each round; unrolled, none is copied */
        uint32_t *a = s + (ROUNDS - t) % 8, *b = s + (ROUNDS - t + 1) % 8, *c = s + (ROUNDS - t + 2) % 8;
        uint32_t *d = s + (ROUNDS - t + 3) % 8, *e = s + (ROUNDS - t + 4) % 8, *f = s + (ROUNDS - t + 5) % 8;
        uint32_t *g = s + (ROUNDS - t + 6) % 8, *h = s + (ROUNDS - t + 7) % 8;
        uint32_t chosen = (*e & *f) ^ (~*e & *g), most = (*a & *b) ^ (*a & *c) ^ (*b & *c);
        uint32_t first = *h + (turned(*e, 6) ^ turned(*e, 11) ^ turned(*e, 25)) + chosen + CONSTANTS[t] + w[t];
        *d += first;
        *h = first + (turned(*a, 2) ^ turned(*a, 13) ^ turned(*a, 22)) + most;
    }
    for (int i = 0; i < SHA256_WORDS; i++) state[i] += s[i];
}

#if defined(__x86_64__)
/* The instructions keep the state as two vectors of its words, a b e f and c d g h from the highest lane down, and do
 * four rounds on four words of the message: intel.com, "Intel SHA Extensions", 2013. */
__attribute__((target("sha,sse4.1"))) static void compress_natively(uint32_t *state, const uint8_t *block) {
    const __m128i swap_bytes = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xb1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
#pragma GCC unroll 16
    for (int t = 0; t < ROUNDS / 4; t++) {
        __m128i *now = w + t % 4, *next = w + (t + 1) % 4, *before_last = w + (t + 2) % 4, *last = w + (t + 3) % 4;
        if (t < 4) {
            *now = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)block + t), swap_bytes);
        } else {
            __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(*now, *next), _mm_alignr_epi8(*last, *before_last, 4));
            *now = _mm_sha256msg2_epu32(sum, *last);
        }
        __m128i added = _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)CONSTANTS + t));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

static int has_instructions(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
}
#endif

static Compress *fastest(void) {
#if defined(__x86_64__)
    if (has_instructions()) return compress_natively;
#endif
    return sha256_compress_portably;
}

Compress *sha256_fastest(void) {
    static Compress *found; /* asking the processor takes longer than a block */
    if (!found) found = fastest();
    return found;
}
