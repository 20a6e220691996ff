"""The decode role's gRPC edge: commands in, one message a step and router out."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from baton.decode.handover import Handover
from baton.decode.scheduler import DecodeScheduler
from baton.decode.work import Grant, Report, Work
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.errors import BatonError, Cancelled, HandoffFailed, InvalidRequest, Overloaded, Unavailable
from baton.kvtransfer.base import TransferResult
from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.group import Handoffs
from baton.rpc import STREAM_BEAT_S
from baton.wire import decode_pb2, decode_pb2_grpc
from baton.wire.convert import (
    failure_to_wire,
    output_from_wire,
    output_to_wire,
    request_from_wire,
)

SERVICE = decode_pb2.DESCRIPTOR.services_by_name["Decode"].full_name
MAX_UNREAD_STEPS = 4096
"""Messages kept for a router that does not read; one more ends its stream, and with it its requests. The messages
go too: while the router read them it would take the stream for open, and send requests that find none."""

_IS_LOCAL = {decode_pb2.LOCAL_PREFILL_NEVER: False, decode_pb2.LOCAL_PREFILL_ALWAYS: True}


class DecodeServicer(decode_pb2_grpc.DecodeServicer):
    """Takes calls between `attach`, which gives it the scheduler, and `detach`, in which the worker decodes; at
    other times they are Unavailable. The scheduler in turn reports to `on_reports`."""

    def __init__(self, engine: Engine, loop: EngineLoop, agent: Handoffs) -> None:
        self._engine = engine
        self._loop = loop
        self._agent = agent
        self._event_loop = asyncio.get_running_loop()
        self._streams: dict[str, _RouterStream] = {}
        self._scheduler: DecodeScheduler | None = None

    def attach(self, scheduler: DecodeScheduler) -> None:
        self._scheduler = scheduler

    def detach(self) -> None:
        """Requests that are here end with their scheduler; routers hear of it by the end of their streams."""
        self._scheduler = None
        for stream in self._streams.values():
            stream.end(_not_decoding())
        self._streams.clear()

    def mount(self, server: aio.Server) -> None:
        decode_pb2_grpc.add_DecodeServicer_to_server(self, server)

    def on_reports(self, reports: list[Report]) -> None:
        """Called on the engine's thread."""
        self._event_loop.call_soon_threadsafe(self._dispatch, reports)

    async def Stream(
        self, request: decode_pb2.StreamRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[decode_pb2.StepOutputs]:
        if not request.router_id:
            raise InvalidRequest("router_id is empty", field="router_id")
        if self._scheduler is None:
            raise _not_decoding()
        if request.router_id in self._streams:
            self._end(request.router_id, Cancelled("the router has opened another stream"))
        stream = self._streams[request.router_id] = _RouterStream()
        try:
            yield decode_pb2.StepOutputs()
            while True:
                yield await stream.next_message(STREAM_BEAT_S) or decode_pb2.StepOutputs()
        finally:
            if self._streams.get(request.router_id) is stream:
                self._end(request.router_id, Cancelled("the router's stream has ended"))

    async def Reserve(
        self, request: decode_pb2.ReserveRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.ReserveReply:
        scheduler = self._scheduler
        if scheduler is None:
            raise _not_decoding()
        if request.router_id not in self._streams:
            raise Unavailable(
                f"router {request.router_id!r} has no stream here: open `Stream` first", field="router_id"
            )
        if request.local_prefill not in _IS_LOCAL:
            raise InvalidRequest(f"local_prefill is {request.local_prefill}", field="local_prefill")
        granted: asyncio.Future[Grant | BatonError] = self._event_loop.create_future()

        def settle(outcome: Grant | BatonError) -> None:
            if not granted.done():
                granted.set_result(outcome)

        def on_grant(outcome: Grant | BatonError) -> None:
            self._event_loop.call_soon_threadsafe(settle, outcome)

        generation = request_from_wire(request.request)
        choices = [self._engine.new_sequence(generation, choice) for choice in range(generation.n)]
        work = Work(
            generation,
            request.router_id,
            choices,
            _IS_LOCAL[request.local_prefill],
            on_grant,
        )
        self._loop.post(lambda: scheduler.submit(work))
        try:
            outcome = await granted
        except asyncio.CancelledError:
            self._loop.post(lambda: scheduler.abandon(work))
            raise
        if isinstance(outcome, BatonError):
            raise outcome
        return decode_pb2.ReserveReply(
            cached_tokens=outcome.cached_tokens,
            ticket=outcome.ticket,
            missing_blocks=outcome.missing_blocks,
            waited_s=outcome.waited_s,
        )

    async def Start(
        self, request: decode_pb2.StartRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.StartReply:
        outputs = [output_from_wire(output) for output in request.first_outputs]
        scheduler = self._scheduler
        if scheduler is None:
            raise _not_decoding()
        self._loop.post(lambda: scheduler.start(request.request_id, outputs))
        return decode_pb2.StartReply()

    async def HandOver(
        self, request: decode_pb2.HandOverRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.HandOverReply:
        scheduler = self._scheduler
        if scheduler is None:
            raise _not_decoding()
        settled: asyncio.Future[BatonError | None] = self._event_loop.create_future()

        def settle(outcome: BatonError | None) -> None:
            if not settled.done():
                settled.set_result(outcome)

        def on_settled(outcome: BatonError | None) -> None:
            self._event_loop.call_soon_threadsafe(settle, outcome)

        def on_done(result: TransferResult) -> None:
            self._loop.post(lambda: scheduler.handovers.ended(handover, result))

        handover = Handover(request.request_id, request.choice, request.tokens, on_settled)
        try:
            handover.session = self._agent.open(request.ticket, on_done)
        except TransferError as error:
            raise HandoffFailed(f"request {request.request_id}: {error}") from error
        self._loop.post(lambda: scheduler.handovers.begin(handover))
        try:
            outcome = await settled
        except asyncio.CancelledError:
            self._loop.post(lambda: scheduler.handovers.keep(handover))
            raise
        if outcome is not None:
            raise outcome
        return decode_pb2.HandOverReply()

    async def Release(
        self, request: decode_pb2.ReleaseRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.ReleaseReply:
        choices, scheduler = list(request.choices), self._scheduler
        if scheduler is not None:  # otherwise nothing is here
            self._loop.post(lambda: scheduler.release(request.request_id, choices))
        return decode_pb2.ReleaseReply()

    def _end(self, router_id: str, reason: BatonError) -> None:
        """Ends a router's stream, and with it its requests; the next stream may be opened at once."""
        self._streams.pop(router_id).end(reason)
        scheduler = self._scheduler
        assert scheduler is not None, "streams end with the role"
        self._loop.post(lambda: scheduler.release_router(router_id))

    def _dispatch(self, reports: list[Report]) -> None:
        by_router: dict[str, list[decode_pb2.RequestOutputs]] = defaultdict(list)
        for report in reports:
            by_router[report.router_id].append(_report_to_wire(report))
        for router_id, outputs in by_router.items():
            stream = self._streams.get(router_id)
            if stream is None:
                continue
            if stream.is_full:
                stream.clear()
                self._end(
                    router_id, Overloaded(f"the router left {MAX_UNREAD_STEPS} steps unread, the limit")
                )
            else:
                stream.put(decode_pb2.StepOutputs(requests=outputs))


def _not_decoding() -> Unavailable:
    return Unavailable("this worker is no decode worker now")


class _RouterStream:
    """The messages that one router has not read yet."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[decode_pb2.StepOutputs | BatonError] = asyncio.Queue()

    @property
    def is_full(self) -> bool:
        return self._queue.qsize() >= MAX_UNREAD_STEPS

    def put(self, message: decode_pb2.StepOutputs) -> None:
        self._queue.put_nowait(message)

    def clear(self) -> None:
        """Forgets what waits."""
        while not self._queue.empty():
            self._queue.get_nowait()

    def end(self, reason: BatonError) -> None:
        """The reader hears of it after the messages that wait already."""
        self._queue.put_nowait(reason)

    async def next_message(self, timeout_s: float) -> decode_pb2.StepOutputs | None:
        """None where there is none in time; raises the reason of the end."""
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(message, BatonError):
            raise message
        return message


def _report_to_wire(report: Report) -> decode_pb2.RequestOutputs:
    return decode_pb2.RequestOutputs(
        request_id=report.request_id,
        outputs=[output_to_wire(output) for output in report.outputs],
        failure=None if report.failure is None else failure_to_wire(report.failure),
        handed_over=report.handed_over,
    )
