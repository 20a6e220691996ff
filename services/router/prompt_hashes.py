"""A prompt's block hashes as its workers compute them: once for each way in which workers of this fleet hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from baton.block_hash import block_hashes, namespace
from baton.fleet import WorkerInfo
from baton.kvtransfer.layout import KVLayout
from baton.router.compiled import is_native_built, native

_decode_layout = msgspec.msgpack.Decoder(KVLayout).decode


@dataclass(frozen=True, slots=True)
class Hashing:
    """Workers of one hashing give the same blocks the same hashes. block_size: tokens a block. kv_fingerprint: what
    fixes the contents of KV, as `baton.engine.model_config.ModelConfig.kv_fingerprint` puts it."""

    block_size: int
    kv_fingerprint: str
    weight_version: str = ""

    @classmethod
    def of(cls, worker: WorkerInfo) -> Hashing:
        """Of a worker whose layout cannot be read: one of its own, so that its blocks are nobody else's."""
        try:
            layout = _decode_layout(worker.kv_layout)
        except msgspec.DecodeError:
            return cls(worker.block_size, f"unknown {worker.worker_id}")
        return cls(worker.block_size, f"{layout.model} {layout.dtype}", layout.weight_version)


class PromptHashes:
    """Of the full blocks of one prompt, computed when they are first asked for."""

    def __init__(self, token_ids: Sequence[int], cache_salt: str) -> None:
        self._token_ids = token_ids
        self._cache_salt = cache_salt
        self._packed: dict[Hashing, bytes] = {}

    def of(self, hashing: Hashing) -> bytes:
        """Packed, as `baton.router.prefix_index.Hashes`."""
        packed = self._packed.get(hashing)
        if packed is None:
            seed = namespace(hashing.kv_fingerprint, hashing.weight_version, self._cache_salt)
            packed = _hash_blocks(seed, self._token_ids, hashing.block_size)
            self._packed[hashing] = packed
        return packed


def _hash_blocks(seed: bytes, token_ids: Sequence[int], block_size: int) -> bytes:
    if is_native_built():
        return native.hash_blocks(seed, token_ids, block_size)
    return b"".join(block_hashes(seed, token_ids, block_size))
