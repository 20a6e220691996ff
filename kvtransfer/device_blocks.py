"""A pool on a GPU, with the same interface as one in host memory.

Blocks go to another pool on a device by one gather and one scatter there, and to host memory through the
buffers of the scheme that asks. Everything is done, not just queued, when a method returns, on a stream of the
array's own, beside the engine's kernels: what has landed may be read on any stream. What is pushed is waited for on
the stream of the thread that pushes (`settle`), for the peer's process knows nothing of it.

XXH3 has no form for a device, so between device pools a chunk's digest is a multilinear hash, the sum of its
64-bit words times odd weights that are fixed at random, modulo 2^64 (https://arxiv.org/abs/1202.4961). An odd
weight is invertible, so a single wrong word never goes unseen, and other damage with a chance of about 2^-63. It
guards against faults, as XXH3 does, and not against an attacker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from baton.kvtransfer import rows
from baton.kvtransfer.base import KVMemory
from baton.kvtransfer.block_array import BlockArray, Blocks, Ids, chunk_blocks
from baton.kvtransfer.errors import SchemeUnavailable
from baton.kvtransfer.rows import Digests

WORD_BYTES = 8
_SEED = 0x6261746F6E


def block_array_of(memory: KVMemory) -> BlockArray:
    """The way to read and write this pool. Raises SchemeUnavailable where there is none."""
    if memory.blocks.device.type == "cpu":
        return BlockArray.of(memory)
    return DeviceBlockArray(memory.blocks)


class DeviceBlockArray(BlockArray):
    is_on_host = False

    def __init__(self, blocks: Tensor) -> None:
        """blocks: uint8 [num_blocks, block_bytes], contiguous, on any device.

        Raises SchemeUnavailable where a block is no whole number of 8-byte words.
        """
        self.block_bytes = blocks.shape[1]
        if self.block_bytes % WORD_BYTES:
            raise SchemeUnavailable(
                f"a block of {self.block_bytes} bytes on {blocks.device} is not a multiple of {WORD_BYTES}"
            )
        self.chunk_blocks = chunk_blocks(self.block_bytes)
        self._bytes = blocks
        self._words = blocks.view(torch.int64)
        self._stream = torch.cuda.Stream(blocks.device) if blocks.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._word_weights = torch.from_numpy(_odd(self.block_bytes // WORD_BYTES)).to(blocks.device)
        self._block_weights = _odd(self.chunk_blocks)

    @property
    def memory(self) -> Tensor:
        """uint8 [num_blocks, block_bytes]."""
        return self._bytes

    @property
    def device(self) -> torch.device:
        return self._bytes.device

    def release(self) -> None:
        self._bytes = torch.empty(0, self.block_bytes, dtype=torch.uint8)
        self._words = self._bytes.view(torch.int64)

    def __len__(self) -> int:
        return len(self._bytes)

    def rows(self, buffer: memoryview) -> Blocks:
        return np.frombuffer(buffer, np.dtype((np.void, self.block_bytes)))

    def units(self, unit_bytes: int) -> Blocks:
        raise AssertionError("a pool on a device is not converted")

    def settle(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self.device).synchronize()

    def digest(self, ids: Ids) -> Digests:
        with self._at_work():
            sums = self._sums(self._words.index_select(0, self._on_device(ids)))
        return self._digests(sums)

    def gather(self, ids: Ids, buffer: Blocks, with_digests: bool) -> Digests:
        """Into host memory, with the digests of host memory."""
        target = torch.from_numpy(buffer[: len(ids)].view(np.uint8)).view(len(ids), self.block_bytes)
        with self._at_work():
            target.copy_(self._bytes.index_select(0, self._on_device(ids)))
        if not with_digests:
            return np.empty(0, np.uint64)
        return rows.digest(buffer, rows.IN_ORDER, len(ids), self.chunk_blocks)

    def scatter(self, ids: Ids, source: Blocks) -> None:
        values = np.array(source).view(np.uint8).reshape(len(ids), self.block_bytes)
        with self._at_work():
            self._bytes.index_copy_(0, self._on_device(ids), torch.from_numpy(values).to(self.device))

    def copy_from(self, other: BlockArray, source_ids: Ids, ids: Ids, with_digests: bool) -> Digests:
        assert isinstance(other, DeviceBlockArray), "a device borrows from a device"
        with self._at_work():
            lent = other._words.index_select(0, other._on_device(source_ids)).to(self.device)
            targets = self._on_device(ids)
            self._words.index_copy_(0, targets, lent)
            sums = self._sums(self._words.index_select(0, targets)) if with_digests else None
        return np.empty(0, np.uint64) if sums is None else self._digests(sums)

    def collect(self, ids: Ids, buffer: Tensor) -> Digests:
        """Copies blocks `ids` to the front of `buffer`, uint8 [n, block_bytes] on the same device."""
        with self._at_work():
            taken = buffer[: len(ids)]
            torch.index_select(self._bytes, 0, self._on_device(ids), out=taken)
            sums = self._sums(taken.view(torch.int64))
        return self._digests(sums)

    def clear(self, ids: Ids) -> None:
        with self._at_work():
            self._words.index_fill_(0, self._on_device(ids), 0)

    def _on_device(self, ids: Ids) -> Tensor:
        return torch.tensor(ids, device=self.device)

    def _sums(self, words: Tensor) -> Tensor:
        """words: int64 [n, words of a block]; returns int64 [n] in host memory."""
        return (words * self._word_weights).sum(dim=1).cpu()

    def _digests(self, sums: Tensor) -> Digests:
        """One for each chunk, from the sums of its blocks."""
        of_blocks = sums.numpy().view(np.uint64)
        weights = self._block_weights.view(np.uint64)
        starts = range(0, len(of_blocks), self.chunk_blocks)
        parts = (of_blocks[start : start + self.chunk_blocks] for start in starts)
        return np.array([(part * weights[: len(part)]).sum(dtype=np.uint64) for part in parts], np.uint64)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()


def _odd(count: int) -> Ids:
    """int64 [count], the same in every process."""
    return np.random.Generator(np.random.Philox(_SEED)).integers(-(2**63), 2**63 - 1, count) | 1
