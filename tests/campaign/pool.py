"""A node's pool: who may hold what in each block, and the check that nothing else is there."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baton.kvtransfer.block_array import BlockArray, Blocks, Ids
from baton.kvtransfer.memory import shareable_memory
from baton.kvtransfer.rows import Digests

NUM_BLOCKS, BLOCK_BYTES = 8, 256
MAX_CHUNK_BLOCKS = 1
"""What `block_array` is set to for the campaign: each block is a chunk, and frames have up to 16 of them."""

CLEARED = bytes(BLOCK_BYTES)

Pause = Callable[[], None]
"""Lets other threads and nodes go on for a while; called wherever a real machine might."""


class Violation(Exception):
    """The hand-off broke a promise. kind: "corruption", "leak" or "ending"."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


def stamp(owner: int, position: int) -> bytes:
    """What block `position` of the request `owner` contains, unlike any other of the schedule."""
    return struct.pack("<QQ", owner, position) * (BLOCK_BYTES // 16)


@dataclass(frozen=True)
class Promise:
    """What may happen to a block that a transfer was promised: it turns into `content`, or is cleared because what
    was copied there could not be believed. is_locked: whether a copy is under way, so that nobody can look."""

    content: bytes
    is_locked: Callable[[], bool]


class PausingBlocks(BlockArray):
    """Others get their turn just before blocks are read or written, and between blocks that are copied from a
    peer's pool: within whatever locks are held there."""

    pause: Pause

    def digest(self, ids: Ids) -> Digests:
        self.pause()
        return super().digest(ids)

    def gather(self, ids: Ids, buffer: Blocks, with_digests: bool) -> Digests:
        self.pause()
        return super().gather(ids, buffer, with_digests)

    def scatter(self, ids: Ids, source: Blocks) -> None:
        self.pause()
        super().scatter(ids, source)

    def copy_from(self, other: BlockArray, source_ids: Ids, ids: Ids, with_digests: bool) -> Digests:
        digests = []
        for at in range(len(ids)):
            self.pause()
            one = slice(at, at + 1)
            digests.append(super().copy_from(other, source_ids[one], ids[one], with_digests))
        self.pause()
        return np.concatenate(digests)

    def clear(self, ids: Ids) -> None:
        self.pause()
        super().clear(ids)


class Pool:
    """A block that is given back goes to its next owner, who writes to it, before the call returns."""

    def __init__(self, name: str, pause: Pause, next_owner: Callable[[], int]) -> None:
        """next_owner: a number for a request that nobody has had."""
        self.name = name
        memory = shareable_memory(NUM_BLOCKS, BLOCK_BYTES)
        assert memory.fd is not None
        self.fd = memory.fd
        self._array = memory.blocks.numpy().reshape(-1)
        self.blocks = PausingBlocks(self._array, BLOCK_BYTES)
        self.blocks.pause = pause
        self._writable = self._array.data
        self._next_owner = next_owner
        self._expected = bytearray(len(self._array))
        self._promised: dict[int, Promise] = {}
        self.free: list[int] = []
        self.give_back(range(NUM_BLOCKS))

    def take(self, count: int) -> list[int]:
        """The blocks that were given back last: what is late is sure to meet their new owner."""
        taken, self.free = self.free[-count:], self.free[:-count]
        return taken

    def give_back(self, block_ids: range | list[int]) -> None:
        for block_id in block_ids:
            self.write(block_id, stamp(self._next_owner(), 0))
            self.free.append(block_id)

    def write(self, block_id: int, content: bytes) -> None:
        """By the block's owner."""
        at = block_id * BLOCK_BYTES
        self._writable[at : at + BLOCK_BYTES] = self._expected[at : at + BLOCK_BYTES] = content

    def read(self, block_id: int) -> bytes:
        return bytes(self._writable[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES])

    def promise(self, block_id: int, promise: Promise) -> None:
        self._promised[block_id] = promise

    def withdraw(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self._promised.pop(block_id, None)

    def check(self) -> None:
        """Raises Violation for a block that changed without its owner's will."""
        if self._array.tobytes() == self._expected:
            return
        for block_id in range(NUM_BLOCKS):
            at, content = block_id * BLOCK_BYTES, self.read(block_id)
            if content == self._expected[at : at + BLOCK_BYTES]:
                continue
            promise = self._promised.get(block_id)
            if promise is not None and promise.is_locked():
                continue
            if promise is None or content not in (promise.content, CLEARED):
                raise Violation("corruption", f"block {block_id} of {self.name} holds {describe(content)}")
            self._expected[at : at + BLOCK_BYTES] = content

    def close(self) -> None:
        os.close(self.fd)


def describe(content: bytes) -> str:
    owner, position = struct.unpack_from("<QQ", content)
    if content == stamp(owner, position):
        return f"position {position} of request {owner}"
    return f"the bytes of nobody: {content.hex()}"
