"""The router's end of a prefill worker: one call a prompt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from grpc import aio

from baton.background import OnCrash, run_forever
from baton.errors import Unavailable, WorkerFailed
from baton.fleet import WorkerInfo
from baton.request import GenerationRequest, TokenOutput
from baton.router.breaker import Breaker
from baton.rpc import Channel, is_task_cancelled
from baton.wire import prefill_pb2, prefill_pb2_grpc
from baton.wire.convert import output_from_wire, request_to_wire

_RunCall = aio.StreamStreamCall[prefill_pb2.PrefillCommand, prefill_pb2.PrefillEvent]

REPORT_GRACE_S = 0.5
"""For a report that the decode worker's tokens have overtaken."""

_log = logging.getLogger(__name__)

Awaited = TypeVar("Awaited")


class PrefillPeer:
    """A prefill worker."""

    def __init__(self, worker: WorkerInfo, secret: bytes, on_crash: OnCrash) -> None:
        self.worker = worker
        self.breaker = Breaker()
        self.channel = Channel(worker.address, secret)
        self._legs: set[PrefillLeg] = set()
        self._stub = prefill_pb2_grpc.PrefillStub(self.channel.grpc)
        self._watch = run_forever(
            self.channel.keep_connected(), f"connection to {worker.worker_id}", on_crash
        )

    @property
    def is_connected(self) -> bool:
        return self.channel.is_reachable

    @asynccontextmanager
    async def run(
        self, request: GenerationRequest, remaining_s: float, waited_s: float
    ) -> AsyncIterator[PrefillLeg]:
        """The first leg of `request`; leaving the context early cancels it on the worker. waited_s: since workers
        first had the request."""
        start = prefill_pb2.PrefillStart(request=request_to_wire(request, remaining_s), waited_s=waited_s)
        async with self.channel.errors_translated():
            call = self._stub.Run(timeout=remaining_s, metadata=self.channel.metadata)
            self.breaker.begin()
            leg = PrefillLeg(call, start, self.channel, self)
            self._legs.add(leg)
            try:
                yield leg
                self.breaker.succeed()
            finally:
                self._legs.discard(leg)
                call.cancel()

    def give_up(self, reason: str) -> None:
        """Fails what is under way here. The worker may be alive, so it is told; but nobody waits for it."""
        for leg in self._legs:
            leg.give_up(WorkerFailed(reason))

    async def close(self) -> None:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self.channel.close()


class PrefillLeg:
    """What happens to one prompt, in this order."""

    def __init__(
        self, call: _RunCall, start: prefill_pb2.PrefillStart, channel: Channel, peer: PrefillPeer
    ) -> None:
        self._call = call
        self._start = start
        self._channel = channel
        self._worker_id = peer.worker.worker_id
        self._breaker = peer.breaker
        self._ahead: asyncio.Task[object] | None = None
        self._given_up: WorkerFailed | None = None

    async def scheduled(self) -> prefill_pb2.PrefillScheduled:
        """Sends the prompt and waits until its turn has come."""
        await self._write(prefill_pb2.PrefillCommand(start=self._start))
        return (await self._read("scheduled")).scheduled

    async def while_alive(self, awaited: Coroutine[Any, Any, Awaited]) -> Awaited:
        """What `awaited` gives; where this leg ends first, cancels it and raises why. For the time between
        `scheduled` and `attach`, in which the worker has nothing to say."""
        self._ahead = asyncio.create_task(self._next())
        self._ahead.add_done_callback(_retrieve)
        other = asyncio.create_task(awaited)
        try:
            await asyncio.wait((other, self._ahead), return_when=asyncio.FIRST_COMPLETED)
            if not other.done():
                await self._read("the ticket was sent")
            return await other
        finally:
            other.cancel()
            await asyncio.wait((other,))

    async def attach(self, ticket: bytes) -> None:
        await self._write(prefill_pb2.PrefillCommand(attach=prefill_pb2.PrefillAttach(ticket=ticket)))

    async def first_tokens(self) -> list[TokenOutput]:
        event = await self._read("first_tokens")
        return [output_from_wire(output) for output in event.first_tokens.outputs]

    async def handed_off(
        self, decode_is_heard: Coroutine[Any, Any, None]
    ) -> prefill_pb2.PrefillHandedOff | None:
        """None where the worker is gone before it has reported, or keeps silent although the decode worker is heard
        already: whether its blocks have all arrived by then, that one knows."""
        self._ahead = asyncio.create_task(self._next())
        self._ahead.add_done_callback(_retrieve)
        heard = asyncio.create_task(decode_is_heard)
        try:
            await asyncio.wait((heard, self._ahead), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((self._ahead,), timeout=REPORT_GRACE_S)
            if not self._ahead.done():
                _log.warning("prefill worker %s has not reported a hand-off that is done", self._worker_id)
                return None
            report = (await self._read("handed_off")).handed_off
        except (Unavailable, WorkerFailed) as error:
            _log.warning("prefill worker %s: %s", self._worker_id, error.message)
            return None
        finally:
            heard.cancel()
        self._breaker.succeed()
        return report

    def give_up(self, reason: WorkerFailed) -> None:
        self._given_up = reason
        self._call.cancel()

    async def _write(self, command: prefill_pb2.PrefillCommand) -> None:
        try:
            with self._ended_by_us():
                await self._call.write(command)
        except asyncio.InvalidStateError:
            await self._read("anything more")  # the call has ended: reading raises why

    async def _read(self, expected: str) -> prefill_pb2.PrefillEvent:
        ahead, self._ahead = self._ahead, None
        event = await (ahead or self._next())
        if not isinstance(event, prefill_pb2.PrefillEvent):
            raise WorkerFailed(f"prefill worker {self._worker_id} ended the call before `{expected}`")
        if event.WhichOneof("event") != expected:
            raise WorkerFailed(
                f"prefill worker {self._worker_id} sent {event.WhichOneof('event')}, not {expected}"
            )
        return event

    async def _next(self) -> object:
        with self._breaker.counting():
            async with self._channel.errors_translated():
                with self._ended_by_us():
                    return await self._call.read()

    @contextmanager
    def _ended_by_us(self) -> Iterator[None]:
        """A call that `give_up` has cancelled fails for its reason."""
        try:
            yield
        except asyncio.CancelledError:
            if self._given_up is None or is_task_cancelled():
                raise
            raise self._given_up from None


def _retrieve(task: asyncio.Task[object]) -> None:
    """A failure of this leg is of no interest any more once the other has failed."""
    if not task.cancelled():
        task.exception()
