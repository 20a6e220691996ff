"""A subscriber for each worker that publishes KV events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq.asyncio

from baton.background import OnCrash, run_forever
from baton.fleet import WorkerInfo
from baton.router.kv_events.replica import EventCounts, Replica
from baton.router.kv_events.sockets import make_context
from baton.router.kv_events.subscriber import Subscriber
from baton.router.prefix_index import PrefixIndex


class Subscribers:
    """On the router's event loop. The caller forgets a worker in the index after it was removed here."""

    def __init__(self, secret: bytes, index: PrefixIndex, on_crash: OnCrash) -> None:
        self.counts = EventCounts()
        self._secret = secret
        self._index = index
        self._on_crash = on_crash
        self._context: zmq.asyncio.Context | None = None
        self._running: dict[str, tuple[Subscriber, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def add(self, worker: WorkerInfo, capacity_blocks: Callable[[], int]) -> None:
        """capacity_blocks: of its pool, 0 while unknown."""
        if not worker.kv_events_address:
            return
        self._context = self._context or make_context()
        replica = Replica(worker.worker_id, worker.block_size, self._index, capacity_blocks, self.counts)
        subscriber = Subscriber(self._context, worker, self._secret, replica, self.counts)
        task = run_forever(subscriber.follow(), f"KV events of {worker.worker_id}", self._on_crash)
        self._running[worker.worker_id] = subscriber, task

    def remove(self, worker_id: str) -> None:
        """From now on nothing about this worker enters the index."""
        if worker_id in self._running:
            _, task = self._running.pop(worker_id)
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    def is_exact(self, worker_id: str) -> bool:
        """Whether the index knows the worker's blocks from the worker, not from guesses."""
        return worker_id in self._running and self._running[worker_id][0].is_exact

    async def close(self) -> None:
        for worker_id in list(self._running):
            self.remove(worker_id)
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._context is not None:
            self._context.term()
