"""Sessions that are over: every worker is told, for the workers know what a session has left with them.

A router keeps nothing of a session: where it belongs is computed (`affinity.py`), and which blocks it alone has
used is known where these are. So any of several routers can finish a session, whoever served it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from baton.errors import BatonError, Overloaded, Unavailable
from baton.fleet import Member, WorkerState
from baton.rpc import CONTROL_TIMEOUT_S, Channel
from baton.wire import control_pb2, control_pb2_grpc

MAX_FINISHING = 256
"""Sessions at the workers at once."""

_HUNG = (WorkerState.STALLED, WorkerState.SUSPECTED)
_HUNG_TIMEOUT_S = 0.2
"""For these: nobody waits for their answers, but they are told. Where the engine hangs the session ends once it is
back; one that is stopped or cut off may never hear of it."""


@dataclass(frozen=True, slots=True)
class FinishedSession:
    """blocks: KV blocks that go first when room is needed, of all workers. workers: the same by worker.
    unconfirmed: workers that did not answer in time; unless they act on it later, what the session has left there
    ages like any other."""

    blocks: int
    workers: dict[str, int]
    unconfirmed: list[str]


@dataclass(slots=True)
class SessionCounts:
    """Since the start. unconfirmed: calls to workers."""

    finished: int = 0
    blocks: int = 0
    unconfirmed: int = 0


class Sessions:
    """On the router's event loop. channels: to the workers that are here now, by id. members: what is known of
    them; nobody waits for those that hang or are silent."""

    def __init__(
        self, channels: Callable[[], Mapping[str, Channel]], members: Callable[[], Iterable[Member]]
    ) -> None:
        self._channels = channels
        self._members = members
        self._finishing = 0
        self.counts = SessionCounts()

    async def finish(self, session_key: bytes) -> FinishedSession:
        """A session that nobody knows, or that is over already, has left nothing, which is no error.

        Raises Unavailable where no worker confirms, and Overloaded while MAX_FINISHING others are under way.
        """
        if self._finishing >= MAX_FINISHING:
            raise Overloaded(f"{MAX_FINISHING} sessions are being finished, the limit")
        channels = self._channels()
        hung = {member.worker.worker_id for member in self._members() if member.state in _HUNG}
        self._finishing += 1
        try:
            answers = await asyncio.gather(
                *(
                    _finish_at(channel, session_key, _HUNG_TIMEOUT_S if id_ in hung else CONTROL_TIMEOUT_S)
                    for id_, channel in channels.items()
                )
            )
        finally:
            self._finishing -= 1
        blocks = dict(zip(channels, answers, strict=True))
        told = {worker_id: count for worker_id, count in blocks.items() if count is not None}
        if not told:
            raise Unavailable("no worker could be told that the session is over")
        unconfirmed = [worker_id for worker_id in blocks if worker_id not in told]
        self.counts.finished += 1
        self.counts.blocks += sum(told.values())
        self.counts.unconfirmed += len(unconfirmed)
        return FinishedSession(sum(told.values()), told, unconfirmed)


async def _finish_at(channel: Channel, session_key: bytes, timeout_s: float) -> int | None:
    """Blocks given up there; None where it is not known."""
    request = control_pb2.FinishSessionRequest(session_key=session_key)
    stub = control_pb2_grpc.ControlStub(channel.grpc)
    try:
        async with channel.errors_translated():
            reply = await stub.FinishSession(request, timeout=timeout_s, metadata=channel.metadata)
    except BatonError:
        return None
    return reply.blocks
