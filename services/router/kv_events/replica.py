"""One worker's cache as its events tell it, kept in the index. No I/O: batches in, verdicts out.

Batches count from 0 within a worker's epoch, and those before `expected` are known. What comes again is dropped,
what is missing is asked for. A worker that contradicts itself is not believed any more: its blocks are dropped, and
it begins anew with a snapshot.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from baton.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, decode_batch
from baton.router.prefix_index import PrefixIndex

_REMEMBERED_BATCHES = 1024
"""A batch that comes again is compared with the first one as long as that is among so many."""


class ImplausibleEvents(Exception):
    """The worker says what cannot be true; the message tells what."""


class Verdict(enum.Enum):
    APPLIED = "applied"
    KNOWN = "known"
    GAP = "gap"
    """Batches before this one are missing; nothing was done."""


@dataclass(slots=True)
class EventCounts:
    """Since the router's start, over all workers. batches, blocks: applied. dropped: batches that came again.
    resyncs: snapshots taken. rejections: of what was implausible."""

    batches: int = 0
    blocks: int = 0
    gaps: int = 0
    dropped: int = 0
    resyncs: int = 0
    rejections: int = 0


class Replica:
    """Of one worker in one epoch. `block_size`: tokens a block. `capacity_blocks`: of its pool, 0 if unknown."""

    def __init__(
        self,
        worker_id: str,
        block_size: int,
        index: PrefixIndex,
        capacity_blocks: Callable[[], int],
        counts: EventCounts,
    ) -> None:
        self.expected = 0
        self._worker_id = worker_id
        self._block_size = block_size
        self._index = index
        self._capacity_blocks = capacity_blocks
        self._counts = counts
        self._seen: OrderedDict[int, int] = OrderedDict()
        self._is_past_snapshot = True

    def take(self, sequence: int, batch: bytes) -> Verdict:
        """A batch as it was published. Raises ImplausibleEvents."""
        if sequence < self.expected:
            self._compare(sequence, batch)
            self._counts.dropped += 1
            return Verdict.KNOWN
        if sequence > self.expected:
            self._counts.gaps += 1
            return Verdict.GAP
        self._apply(_decoded(batch))
        self._remember(sequence, batch)
        self.expected = sequence + 1
        self._is_past_snapshot = True
        self._counts.batches += 1
        return Verdict.APPLIED

    def load(self, sequence: int, batches: list[bytes]) -> Iterator[None]:
        """A snapshot as of the batch `sequence`, in place of all that was known; a step for each batch. Raises
        ImplausibleEvents."""
        decoded = [_decoded(batch) for batch in batches]
        if sequence + 1 < self.expected or not (decoded and decoded[0].events):
            raise ImplausibleEvents(f"a snapshot as of batch {sequence} of {len(batches)} batches")
        if not isinstance(decoded[0].events[0], AllBlocksCleared):
            raise ImplausibleEvents("a snapshot that does not begin with AllBlocksCleared")
        for batch in decoded:
            self._apply(batch)
            yield
        self._seen.clear()
        self.expected = sequence + 1
        self._is_past_snapshot = False
        self._counts.resyncs += 1

    def forget(self) -> None:
        """Credits the worker with nothing, and believes nothing that it has said."""
        self._index.clear(self._worker_id)
        self._seen.clear()
        self.expected = 0

    def _apply(self, batch: EventBatch) -> None:
        for event in batch.events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved():
                    self._index.remove(self._worker_id, event.block_hashes)
                    self._counts.blocks += len(event.block_hashes)
                case AllBlocksCleared():
                    self._index.clear(self._worker_id)

    def _store(self, event: BlockStored) -> None:
        if event.block_size != self._block_size:
            raise ImplausibleEvents(f"blocks of {event.block_size} tokens, announced were {self._block_size}")
        self._index.store(self._worker_id, event.block_hashes)
        self._counts.blocks += len(event.block_hashes)
        stored, capacity = self._index.stored(self._worker_id), self._capacity_blocks()
        if capacity and stored > capacity:
            raise ImplausibleEvents(f"{stored} blocks in a pool of {capacity}")

    def _compare(self, sequence: int, batch: bytes) -> None:
        """A batch that comes again has to be what it was. Those that a snapshot contains were never seen here; they
        may still be under way until the first one after it."""
        known = self._seen.get(sequence)
        is_in_snapshot = known is None and sequence >= 0 and not self._is_past_snapshot
        if known != hash(batch) and not is_in_snapshot:
            raise ImplausibleEvents(
                f"batch {sequence} after batch {self.expected - 1}, and it is another one"
            )

    def _remember(self, sequence: int, batch: bytes) -> None:
        self._seen[sequence] = hash(batch)
        if len(self._seen) > _REMEMBERED_BATCHES:
            self._seen.popitem(last=False)


def _decoded(batch: bytes) -> EventBatch:
    try:
        return decode_batch(batch)
    except msgspec.DecodeError as error:
        raise ImplausibleEvents(f"a batch that is none: {error}") from error
