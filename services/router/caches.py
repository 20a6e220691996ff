"""What the workers' prefix caches hold, as far as this router knows: exactly where a worker's KV events arrive,
else learned from what was placed there.

Either way a prompt counts as cached where it was placed from that moment on, so that a burst with the same
beginning queues behind it where that will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from baton.background import OnCrash
from baton.fleet import WorkerInfo
from baton.router.kv_events.replica import EventCounts
from baton.router.kv_events.subscribers import Subscribers
from baton.router.prefix_index import IndexStats, PrefixIndex
from baton.router.prompt_hashes import Hashing, PromptHashes

_EVENT_LAG_S = 0.5
"""So long an expectation outlives its prompt's computation; the events that make it true are on their way then."""


class Caches:
    """On the router's event loop."""

    def __init__(self, secret: bytes, on_crash: OnCrash) -> None:
        self.index = PrefixIndex()
        self._subscribers = Subscribers(secret, self.index, on_crash)
        self._hashings: dict[str, Hashing] = {}
        self._distinct: list[Hashing] = []  # one, unless workers are unlike
        self._capacity_blocks: dict[str, Callable[[], int]] = {}

    def add(self, worker: WorkerInfo, capacity_blocks: Callable[[], int]) -> None:
        """capacity_blocks: of its pool, as it reported last. A worker that has changed its role is added once more,
        with the cache that it had."""
        worker_id = worker.worker_id
        is_known = worker_id in self._hashings
        self._capacity_blocks[worker_id] = capacity_blocks
        if not is_known:
            self._hashings[worker_id] = Hashing.of(worker)
            self._distinct = sorted(set(self._hashings.values()), key=astuple)
            self._subscribers.add(worker, lambda: self._capacity_blocks[worker_id]())

    def remove(self, worker_id: str) -> None:
        """Nothing of its cache is left, or can be reached."""
        self._subscribers.remove(worker_id)
        self.index.forget(worker_id)
        del self._hashings[worker_id], self._capacity_blocks[worker_id]
        self._distinct = sorted(set(self._hashings.values()), key=astuple)

    async def close(self) -> None:
        await self._subscribers.close()

    def matched_tokens(self, hashes: PromptHashes) -> NDArray[np.int32]:
        """How many of the prompt's first tokens each worker has cached in full blocks, by its slot in the index."""
        tokens = None
        for hashing in self._distinct:
            matched = self.index.match_all(hashes.of(hashing)) * np.int32(hashing.block_size)
            tokens = matched if tokens is None else np.maximum(tokens, matched)
        return np.zeros(0, np.int32) if tokens is None else tokens

    def note_cached(self, worker_id: str, hashes: PromptHashes) -> None:
        """The worker has just held the prompt's blocks: news of one whose events do not arrive."""
        if worker_id in self._hashings and not self._subscribers.is_exact(worker_id):
            packed = hashes.of(self._hashings[worker_id])
            self.index.add(worker_id, packed, self._capacity_blocks[worker_id]())

    def expect(self, worker_id: str, hashes: PromptHashes) -> Expectation:
        """The prompt was placed on this worker."""
        self.note_cached(worker_id, hashes)
        return Expectation(self.index, worker_id, hashes.of(self._hashings[worker_id]))

    def is_exact(self, worker_id: str) -> bool:
        return self._subscribers.is_exact(worker_id)

    @property
    def stats(self) -> tuple[IndexStats, EventCounts]:
        return self.index.stats(), self._subscribers.counts


class Expectation:
    """Makes a prompt's blocks count as held by a worker until shortly after `end`."""

    def __init__(self, index: PrefixIndex, worker_id: str, packed: bytes) -> None:
        self._index = index
        self._worker_id = worker_id
        self._packed = packed
        self._is_open = True
        index.expect(worker_id, packed)

    def end(self) -> None:
        if self._is_open:
            self._is_open = False
            loop = asyncio.get_running_loop()
            loop.call_later(_EVENT_LAG_S, self._index.settle, self._worker_id, self._packed)
