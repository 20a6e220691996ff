"""Which workers hold which blocks, in plain Python: what `csrc/` does where there is a compiler, step for step.

Workers are slots (small integers), hashes come packed, 16 bytes each. A pair of a block and a worker is there while
somebody claims it: the worker stores it, or requests expect it there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from numpy import int32
from numpy.typing import NDArray

from baton.block_hash import HASH_BYTES

_STORED, _EXPECTED = 1, 2
_MAX_CLAIMS = 0xFFFF
_PAIR_BYTES, _BLOCK_BYTES = 200, 400
"""About what one takes here, in dictionaries."""


@dataclass(slots=True)
class _Block:
    """is_referenced: since the clock's hand passed."""

    block_hash: bytes
    holders: set[int] = field(default_factory=set)
    is_referenced: bool = False


class BlockTable:
    """At most `max_pairs` pairs. Where more come, a clock evicts: its hand goes around all blocks, spares those
    that were matched or claimed again since it last passed, and drops the first other one from all its workers."""

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._places: list[_Block | None] = []
        self._free: list[int] = []
        self._place_of: dict[bytes, int] = {}
        self._claims: dict[int, OrderedDict[bytes, int]] = {}
        self._pairs = self._evicted_blocks = 0
        self._hand = -1

    def store(self, slot: int, hashes: bytes) -> None:
        """The worker holds these blocks, the last one most recently."""
        claims = self._claims.setdefault(slot, OrderedDict())
        for block_hash in _split(hashes):
            self._touch(slot, block_hash)
            claims[block_hash] |= _STORED

    def remove(self, slot: int, hashes: bytes) -> None:
        """The worker does not hold these blocks any more; what is expected there still counts."""
        claims = self._claims.get(slot, OrderedDict())
        for block_hash in _split(hashes):
            if block_hash in claims:
                self._set(slot, block_hash, claims[block_hash] & ~_STORED)

    def expect(self, slot: int, hashes: bytes) -> None:
        """A request will make the worker hold these blocks: they count until the same is settled."""
        claims = self._claims.setdefault(slot, OrderedDict())
        for block_hash in _split(hashes):
            self._touch(slot, block_hash)
            if claims[block_hash] + _EXPECTED <= _MAX_CLAIMS:
                claims[block_hash] += _EXPECTED

    def settle(self, slot: int, hashes: bytes) -> None:
        """What was expected once counts on its own now, or not at all."""
        claims = self._claims.get(slot, OrderedDict())
        for block_hash in _split(hashes):
            claimed = claims.get(block_hash)
            if claimed is not None:
                self._set(slot, block_hash, claimed - _EXPECTED if claimed >= _EXPECTED else claimed)

    def shrink(self, slot: int, count: int) -> None:
        """Drops the worker's least recently claimed blocks until it has at most `count`."""
        claims = self._claims.get(slot, OrderedDict())
        while len(claims) > count:
            self._drop(slot, next(iter(claims)))

    def match(self, slot: int, hashes: bytes) -> int:
        """How many leading blocks the worker holds."""
        for count, block_hash in enumerate(_split(hashes)):
            block = self._find(block_hash)
            if block is None or slot not in block.holders:
                return count
            block.is_referenced = True
        return len(hashes) // HASH_BYTES

    def match_all(self, hashes: bytes, leading: NDArray[int32]) -> None:
        """The same for every worker: `leading` is indexed by slot."""
        leading.fill(0)
        candidates: set[int] | None = None
        count = 0
        for count, block_hash in enumerate(_split(hashes), 1):
            block = self._find(block_hash)
            holders = set() if block is None else block.holders
            kept = set(holders) if candidates is None else candidates & holders
            for slot in (candidates or set()) - kept:
                leading[slot] = count - 1
            if block is None or not kept:
                return
            block.is_referenced = True
            candidates = kept
        for slot in candidates or ():
            leading[slot] = count

    def stored(self, slot: int) -> int:
        """How many blocks the worker stores, whatever is expected."""
        return sum(claims & _STORED for claims in self._claims.get(slot, {}).values())

    def stats(self) -> tuple[int, int, int, int]:
        """Pairs, blocks, bytes that they take, blocks evicted so far."""
        blocks = len(self._place_of)
        used_bytes = self._pairs * _PAIR_BYTES + blocks * _BLOCK_BYTES
        return self._pairs, blocks, used_bytes, self._evicted_blocks

    def _find(self, block_hash: bytes) -> _Block | None:
        place = self._place_of.get(block_hash)
        return None if place is None else self._places[place]

    def _touch(self, slot: int, block_hash: bytes) -> None:
        """Makes the pair the worker's most recent one, and a new one where it was missing."""
        block = self._find(block_hash)
        if block is not None:
            block.is_referenced = True
            if slot in block.holders:
                self._claims[slot].move_to_end(block_hash)
                return
        if self._pairs == self._max_pairs:
            self._evict()
        block = self._find(block_hash) or self._new_block(block_hash)
        block.holders.add(slot)
        self._claims[slot][block_hash] = 0
        self._pairs += 1

    def _new_block(self, block_hash: bytes) -> _Block:
        if not self._free:
            self._free.append(len(self._places))
            self._places.append(None)
        place = self._free.pop()
        block = self._places[place] = _Block(block_hash)
        self._place_of[block_hash] = place
        return block

    def _set(self, slot: int, block_hash: bytes, claims: int) -> None:
        self._claims[slot][block_hash] = claims
        if not claims:
            self._drop(slot, block_hash)

    def _drop(self, slot: int, block_hash: bytes) -> None:
        del self._claims[slot][block_hash]
        self._pairs -= 1
        block = self._find(block_hash)
        assert block is not None, f"slot {slot} holds block {block_hash.hex()}, which is not there"
        block.holders.remove(slot)
        if not block.holders:
            place = self._place_of.pop(block_hash)
            self._places[place] = None
            self._free.append(place)

    def _evict(self) -> None:
        while True:
            self._hand = (self._hand + 1) % len(self._places)
            block = self._places[self._hand]
            if block is not None and not block.is_referenced:
                break
            if block is not None:
                block.is_referenced = False
        for slot in list(block.holders):
            self._drop(slot, block.block_hash)
        self._evicted_blocks += 1


def _split(hashes: bytes) -> Iterator[bytes]:
    if len(hashes) % HASH_BYTES:
        raise ValueError(f"{len(hashes)} bytes are no hashes of {HASH_BYTES}")
    return (hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES))
