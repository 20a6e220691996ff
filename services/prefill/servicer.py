"""The prefill role's gRPC edge: one bidirectional call a prompt, whose end releases the prompt."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.errors import BatonError, Cancelled, DeadlineExceeded, HandoffFailed, InvalidRequest, Unavailable
from baton.kvtransfer.base import TransferError, TransferResult, TransferState
from baton.kvtransfer.group import Handoffs
from baton.prefill.prompt import HandoffReport, Prompt
from baton.prefill.scheduler import PrefillScheduler
from baton.request import TokenOutput
from baton.wire import prefill_pb2, prefill_pb2_grpc
from baton.wire.convert import output_to_wire, request_from_wire

SERVICE = prefill_pb2.DESCRIPTOR.services_by_name["Prefill"].full_name
START_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0


class PrefillServicer(prefill_pb2_grpc.PrefillServicer):
    """Turns calls into scheduler commands and a prompt's progress into events of its call.

    Takes calls between `attach` and `detach`, in which the worker prefills; at other times they are Unavailable.
    """

    def __init__(self, engine: Engine, loop: EngineLoop, agent: Handoffs) -> None:
        self._engine = engine
        self._loop = loop
        self._agent = agent
        self._scheduler: PrefillScheduler | None = None

    def attach(self, scheduler: PrefillScheduler) -> None:
        self._scheduler = scheduler

    def detach(self) -> None:
        """Prompts that are here end with their scheduler."""
        self._scheduler = None

    def mount(self, server: aio.Server) -> None:
        prefill_pb2_grpc.add_PrefillServicer_to_server(self, server)

    async def Run(
        self,
        request_iterator: AsyncIterator[prefill_pb2.PrefillCommand],
        context: aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        stood_still = Unavailable(
            f"no `start` came within {START_TIMEOUT_S:g} s: worker or caller stood still"
        )
        start = await _receive(request_iterator, "start", START_TIMEOUT_S, stood_still)
        progress = _Progress(asyncio.get_running_loop())
        prompt = self._new_prompt(start.start, progress)
        scheduler = self._scheduler
        if scheduler is None:
            raise Unavailable("this worker is no prefill worker now")
        self._loop.post(lambda: scheduler.submit(prompt))
        try:
            yield await progress.next_event()  # scheduled; from here on the scheduler keeps the deadline
            late = DeadlineExceeded("no `attach` came within the request's deadline")
            attach = await _receive(request_iterator, "attach", prompt.remaining_s(), late)
            self._open(scheduler, prompt, attach.attach.ticket)
            yield await progress.next_event()  # the first tokens
            yield await progress.next_event()  # handed off
        finally:
            self._loop.post(lambda: scheduler.cancel(prompt))

    def _new_prompt(self, start: prefill_pb2.PrefillStart, progress: _Progress) -> Prompt:
        request = request_from_wire(start.request)
        if not 0 <= start.waited_s < math.inf:
            raise InvalidRequest(f"waited_s is {start.waited_s}; seconds, 0 or more", field="waited_s")
        choices = [self._engine.new_sequence(request, choice) for choice in range(request.n)]
        return Prompt(request, choices, progress, start.waited_s)

    def _open(self, scheduler: PrefillScheduler, prompt: Prompt, ticket: bytes) -> None:
        def ended(result: TransferResult) -> None:
            if result.state is TransferState.DONE and prompt.tail_pushed_at_s:
                prompt.tell_handed_off(result)  # at once: the engine may be busy with another prompt's chunk
            self._loop.post(lambda: scheduler.transfer_ended(prompt, result))

        try:
            session = self._agent.open(
                ticket,
                ended,
                time.monotonic() + CONNECT_TIMEOUT_S,
            )
        except TransferError as error:
            raise HandoffFailed(f"request {prompt.request.request_id}: {error}") from error
        self._loop.post(lambda: scheduler.attach(prompt, session))


async def _receive(
    commands: AsyncIterator[prefill_pb2.PrefillCommand], expected: str, timeout_s: float, late: BatonError
) -> prefill_pb2.PrefillCommand:
    """The next command, which has to be `expected`; a caller that closes its side will never send it. Raises `late`
    where it does not come in time."""
    try:
        async with asyncio.timeout(timeout_s):
            command = await anext(commands, None)
    except TimeoutError:
        raise late from None
    if command is None or command.WhichOneof("command") != expected:
        raise InvalidRequest(f"the next message of a prefill call has to be `{expected}`", field=expected)
    return command


class _Progress:
    """Carries one prompt's progress from the engine's thread to its call. At most three events a prompt, so
    the queue is bounded by construction."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[prefill_pb2.PrefillEvent | BatonError] = asyncio.Queue()

    async def next_event(self) -> prefill_pb2.PrefillEvent:
        """Raises what the prompt failed of; it does by its deadline."""
        event = await self._queue.get()
        if isinstance(event, BatonError):
            raise event
        return event

    def on_scheduled(self, cached_tokens: int) -> None:
        scheduled = prefill_pb2.PrefillScheduled(cached_tokens=cached_tokens)
        self._put(prefill_pb2.PrefillEvent(scheduled=scheduled))

    def on_first_tokens(self, outputs: list[TokenOutput]) -> None:
        first = prefill_pb2.PrefillFirstTokens(outputs=[output_to_wire(output) for output in outputs])
        self._put(prefill_pb2.PrefillEvent(first_tokens=first))

    def on_handed_off(self, report: HandoffReport) -> None:
        handed_off = prefill_pb2.PrefillHandedOff(
            blocks=report.blocks,
            bytes=report.bytes,
            queued_s=report.queued_s,
            compute_s=report.compute_s,
            first_byte_s=report.first_byte_s,
            last_byte_s=report.last_byte_s,
            acknowledged_s=report.acknowledged_s,
            scheme=report.scheme,
        )
        self._put(prefill_pb2.PrefillEvent(handed_off=handed_off))

    def on_failed(self, error: BatonError) -> None:
        self._put(error)

    def _put(self, event: prefill_pb2.PrefillEvent | BatonError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
        except RuntimeError as error:
            raise Cancelled("the worker's event loop is closed") from error
