"""Changes of the prefix cache as numbered batches of events, with those that were sent last kept for replay."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from baton.kv_events import (
    MAX_EVENT_BLOCKS,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
    encode_batch,
)
from baton.worker.kv_event_log import Change, Removed, Reset, Stored

_pack = msgspec.msgpack.Encoder().encode
_NO_TOKENS = msgspec.Raw(_pack([]))


class KvBatches:
    """Owned by one thread. `sequence` is that of the last batch, -1 before the first."""

    def __init__(self, block_size: int, max_kept_batches: int, max_kept_bytes: int) -> None:
        """block_size: tokens a block. The limits are of what can be replayed."""
        self.sequence = -1
        self._block_size = block_size
        self._max_kept_batches = max_kept_batches
        self._max_kept_bytes = max_kept_bytes
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._cached: dict[bytes, None] = {}

    def add(self, changes: Sequence[Change]) -> Iterator[tuple[int, bytes]]:
        """The batches that tell these changes, each with its sequence."""
        for change in changes:
            self._note(change)
        for events in _grouped(self._events(changes)):
            self.sequence += 1
            batch = encode_batch(EventBatch(time.time(), events))
            self._keep(self.sequence, batch)
            yield self.sequence, batch

    def since(self, sequence: int) -> Iterator[tuple[int, bytes]]:
        """The batches from `sequence` on, as far as they are still kept."""
        return (kept for kept in self._kept if kept[0] >= sequence)

    def snapshot(self) -> Iterator[bytes]:
        """Batches that together tell all that is cached after the batch `sequence`."""
        hashes = list(self._cached)
        events: list[KvEvent] = [AllBlocksCleared()]
        for start in range(0, max(1, len(hashes)), MAX_EVENT_BLOCKS):
            events += self._stored(hashes[start : start + MAX_EVENT_BLOCKS])
            yield encode_batch(EventBatch(time.time(), events))
            events = []

    def _note(self, change: Change) -> None:
        match change:
            case Stored():
                self._cached[change.block_hash] = None
            case Removed():
                del self._cached[change.block_hash]
            case Reset():
                self._cached = dict.fromkeys(change.hashes)

    def _keep(self, sequence: int, batch: bytes) -> None:
        self._kept.append((sequence, batch))
        self._kept_bytes += len(batch)
        while len(self._kept) > self._max_kept_batches or self._kept_bytes > self._max_kept_bytes:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def _events(self, changes: Sequence[Change]) -> Iterator[KvEvent]:
        """Neighbours that belong together are one event."""
        run: list[Change] = []
        for change in changes:
            if run and not (_continues(run[-1], change) and len(run) < MAX_EVENT_BLOCKS):
                yield from self._event(run)
                run = []
            run.append(change)
        yield from self._event(run)

    def _event(self, run: Sequence[Change]) -> Iterator[KvEvent]:
        if not run:
            return
        first = run[0]
        if isinstance(first, Stored):
            stored = [change for change in run if isinstance(change, Stored)]
            token_ids = [token_id for change in stored for token_id in change.token_ids]
            hashes = [change.block_hash for change in stored]
            yield BlockStored(hashes, first.parent_hash, msgspec.Raw(_pack(token_ids)), self._block_size)
        elif isinstance(first, Removed):
            yield BlockRemoved([change.block_hash for change in run if isinstance(change, Removed)])
        else:
            yield AllBlocksCleared()
            for start in range(0, len(first.hashes), MAX_EVENT_BLOCKS):
                yield from self._stored(first.hashes[start : start + MAX_EVENT_BLOCKS])

    def _stored(self, hashes: Sequence[bytes]) -> list[KvEvent]:
        """Blocks of which no more than the hash is known; none for none."""
        return [BlockStored(list(hashes), None, _NO_TOKENS, self._block_size)] if hashes else []


def _continues(before: Change, change: Change) -> bool:
    if isinstance(before, Stored) and isinstance(change, Stored):
        return change.parent_hash == before.block_hash
    return isinstance(before, Removed) and isinstance(change, Removed)


def _grouped(events: Iterator[KvEvent]) -> Iterator[list[KvEvent]]:
    """Runs of events of at most MAX_EVENT_BLOCKS blocks, give or take the last event's."""
    group: list[KvEvent] = []
    blocks = 0
    for event in events:
        group.append(event)
        blocks += 1 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
        if blocks >= MAX_EVENT_BLOCKS:
            yield group
            group, blocks = [], 0
    if group:
        yield group
