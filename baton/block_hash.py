"""Content hashes of KV blocks.

A block's hash chains over all tokens up to its end and is seeded by a namespace (model fingerprint, weight
version, tenant salt), so equal hashes mean equal KV contents within one namespace and never across two.
SHA-256 cut to 16 bytes: tenants choose tokens, so the hash has to withstand chosen collisions.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256

HASH_BYTES = 16


def namespace(model_fingerprint: str, weight_version: str = "", cache_salt: str = "") -> bytes:
    """The seed of every chain; each part is length-prefixed so that no two triples share one."""
    parts = [part.encode() for part in (model_fingerprint, weight_version, cache_salt)]
    return sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()[:HASH_BYTES]


def next_hash(parent: bytes, block_tokens: Sequence[int]) -> bytes:
    """Hash of the block holding `block_tokens` whose predecessor's hash (or namespace) is `parent`."""
    return sha256(parent + array("I", block_tokens).tobytes()).digest()[:HASH_BYTES]


def iter_hashes(seed: bytes, token_ids: Sequence[int], block_size: int) -> Iterator[bytes]:
    """Hashes of the full blocks of `token_ids`, in order; a partial last block has none."""
    packed = memoryview(array("I", token_ids).tobytes())
    step = block_size * 4
    digest = seed
    for start in range(0, len(packed) - step + 1, step):
        digest = sha256(digest + packed[start : start + step]).digest()[:HASH_BYTES]
        yield digest


def block_hashes(seed: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """All of `iter_hashes` at once."""
    return list(iter_hashes(seed, token_ids, block_size))
