/* SHA-256 (FIPS 180-4), one block of 64 bytes at a time, by the processor's own instructions where it has them. */
#pragma once
#include <stdint.h>

enum { SHA256_BLOCK_BYTES = 64, SHA256_WORDS = 8 };

typedef void Compress(uint32_t *state, const uint8_t *block);

/* The state before the first block. */
extern const uint32_t SHA256_BEGIN[SHA256_WORDS];

/* Takes one block into the state, in plain C. */
Compress sha256_compress_portably;

/* The fastest form of it that this processor has. */
Compress *sha256_fastest(void);
