"""Follows one worker's KV events for as long as the worker is a member.

Subscribe, take a snapshot, then apply what is published. A gap is filled from the worker's replay socket, or by
another snapshot where that has too few. While there is no good connection, the worker's blocks are those
that the router learns from its own routing.
"""

from __future__ import annotations

import asyncio
import logging
import time

import zmq
import zmq.asyncio

from baton.fleet import WorkerInfo
from baton.kv_events import SNAPSHOT, worker_keys
from baton.router.kv_events.conversation import NotAnswered, ask, read_frames
from baton.router.kv_events.replica import EventCounts, ImplausibleEvents, Replica, Verdict
from baton.router.kv_events.sockets import open_socket

_log = logging.getLogger(__name__)
_FIRST_SILENCE_S, _MAX_SILENCE_S = 0.25, 30.0
"""After so long without a batch the worker is asked for missed ones, the longer the more often there were none. The
first time is soon: a subscription takes effect at a time that nobody tells, and a batch may have come before."""

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 60.0
"""Between a failure and the next attempt, doubled each time."""


class Subscriber:
    """`is_exact` while the index has what the worker says, up to what is on its way."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        worker: WorkerInfo,
        secret: bytes,
        replica: Replica,
        counts: EventCounts,
    ) -> None:
        self.is_exact = False
        self._context = context
        self._worker = worker
        self._replica = replica
        self._counts = counts
        self._key, _ = worker_keys(secret, worker.worker_id, worker.epoch)

    async def follow(self) -> None:
        """Runs until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            started_s = time.monotonic()
            try:
                with open_socket(self._context, zmq.SUB, self._worker.kv_events_address, self._key) as events:
                    events.subscribe(b"")
                    await self._load_snapshot()
                    await self._apply(events)
            except (NotAnswered, zmq.ZMQError) as error:
                self._complain(str(error), pause_s)
            except ImplausibleEvents as error:
                self._counts.rejections += 1
                self._replica.forget()
                self._complain(f"its events are not believed: {error}", pause_s)
            self.is_exact = False
            if time.monotonic() - started_s > _MAX_PAUSE_S:  # it went well for a while
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _load_snapshot(self) -> None:
        answer = await self._ask(SNAPSHOT)
        sequences = {sequence for sequence, _ in answer}
        if len(sequences) != 1:
            raise ImplausibleEvents(f"a snapshot as of {len(sequences)} batches")
        self.is_exact = True  # from the first batch on, lest what is learned elsewhere comes between
        for _ in self._replica.load(sequences.pop(), [batch for _, batch in answer]):
            await asyncio.sleep(0)  # thousands of blocks each: the loop has others to serve

    async def _apply(self, events: zmq.asyncio.Socket) -> None:
        silence_s = _FIRST_SILENCE_S
        while True:
            if await events.poll(round(silence_s * 1000)):
                sequence, batch = read_frames(await events.recv_multipart())
                if self._replica.take(sequence, batch) is Verdict.GAP:
                    await self._catch_up()
                    if self._replica.expected <= sequence:
                        await self._load_snapshot()
            else:
                await self._catch_up()
                silence_s = min(2 * silence_s, _MAX_SILENCE_S)

    async def _catch_up(self) -> None:
        """Applies what was missed, if anything."""
        for sequence, batch in await self._ask(self._replica.expected):
            if self._replica.take(sequence, batch) is Verdict.GAP:
                await self._load_snapshot()
                return

    async def _ask(self, start: int) -> list[tuple[int, bytes]]:
        return await ask(self._context, self._worker.kv_replay_address, self._key, start)

    def _complain(self, reason: str, pause_s: float) -> None:
        """A worker without a good connection is asked again and again; only the first times are news."""
        level = logging.WARNING if self.is_exact or pause_s == _FIRST_PAUSE_S else logging.DEBUG
        _log.log(level, "kv events of %s: %s", self._worker.worker_id, reason)
