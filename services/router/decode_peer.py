"""The router's end of a decode worker: one standing stream, on which the tokens of all requests there arrive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from grpc import aio

from baton.background import OnCrash, run_forever
from baton.errors import BatonError, Cancelled, DeadlineExceeded, Unavailable, WorkerFailed
from baton.fleet import WorkerInfo
from baton.request import GenerationRequest, TokenOutput
from baton.router.breaker import Breaker
from baton.rpc import CONTROL_TIMEOUT_S, STREAM_SILENCE_S, Channel, is_task_cancelled
from baton.wire import decode_pb2, decode_pb2_grpc
from baton.wire.convert import failure_from_wire, output_from_wire, output_to_wire, request_to_wire

_StepCall = aio.UnaryStreamCall[decode_pb2.StreamRequest, decode_pb2.StepOutputs]

_log = logging.getLogger(__name__)
_RECONNECT_S = 0.2


class DecodePeer:
    """A decode worker. `run` holds the stream on which all its tokens for this router arrive."""

    def __init__(
        self,
        worker: WorkerInfo,
        secret: bytes,
        router_id: str,
        on_crash: OnCrash,
        on_connected: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.breaker = Breaker()
        self.is_connected = False
        self.is_leaving = False
        self._on_connected = on_connected
        self._router_id = router_id
        self.channel = Channel(worker.address, secret)
        self._stub = decode_pb2_grpc.DecodeStub(self.channel.grpc)
        self._legs: dict[str, DecodeLeg] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._steps: _StepCall | None = None
        self._ended: _StepCall | None = None
        self._stream = run_forever(self._hold_stream(), f"stream from {worker.worker_id}", on_crash)

    @asynccontextmanager
    async def attach(self, request: GenerationRequest) -> AsyncIterator[DecodeLeg]:
        """The second leg of `request`; leaving the context before its end releases it on the worker."""
        leg = DecodeLeg(self, request)
        self._legs[request.request_id] = leg
        try:
            yield leg
        finally:
            del self._legs[request.request_id]
            if leg.is_on_worker:
                self.release(request.request_id)

    async def reserve(
        self, request: GenerationRequest, remaining_s: float, *, is_local: bool
    ) -> decode_pb2.ReserveReply:
        message = decode_pb2.ReserveRequest(
            router_id=self._router_id,
            request=request_to_wire(request, remaining_s),
            local_prefill=decode_pb2.LOCAL_PREFILL_ALWAYS if is_local else decode_pb2.LOCAL_PREFILL_NEVER,
        )
        steps = self._steps
        try:
            async with self.channel.errors_translated():
                return await self._stub.Reserve(message, timeout=remaining_s, metadata=self.channel.metadata)
        except Unavailable as error:
            if error.field == "router_id":  # the end of the stream is behind steps that are unread
                self._ended = steps
            raise Unavailable(error.message) from error
        except Cancelled as error:  # by the worker, whose stream to this router broke meanwhile
            raise WorkerFailed(error.message) from error

    async def start(self, request_id: str, first_outputs: list[TokenOutput]) -> None:
        message = decode_pb2.StartRequest(
            request_id=request_id, first_outputs=[output_to_wire(output) for output in first_outputs]
        )
        try:
            async with self.channel.errors_translated():
                await self._stub.Start(message, timeout=CONTROL_TIMEOUT_S, metadata=self.channel.metadata)
        except DeadlineExceeded as error:  # the call's own, which says nothing of the request's
            raise WorkerFailed(error.message) from error

    async def hand_over(self, request_id: str, tokens: int, ticket: bytes, timeout_s: float) -> None:
        """Has the worker send the KV of a request's only choice to `ticket`; its leg tells when it has stopped
        there. Raises what kept it from that."""
        message = decode_pb2.HandOverRequest(request_id=request_id, choice=0, tokens=tokens, ticket=ticket)
        async with self.channel.errors_translated():
            await self._stub.HandOver(message, timeout=timeout_s, metadata=self.channel.metadata)

    def note_leaving(self, is_leaving: bool) -> None:
        """The worker drains, or does so no more: what it decodes is to move."""
        if is_leaving and not self.is_leaving:
            for leg in self._legs.values():
                leg.wake()
        self.is_leaving = is_leaving

    def give_up(self, reason: str) -> None:
        """Fails what is under way here. The worker may be alive, so it is told; but nobody waits for it."""
        for leg in self._legs.values():
            leg.give_up(WorkerFailed(reason))

    def release(self, request_id: str, *choices: int) -> None:
        """Tells the worker, in the background, to forget a request or some of its choices. A worker that
        cannot be told notices by the end of the stream."""
        task = asyncio.create_task(self._release(request_id, choices))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def close(self) -> None:
        """Fails what is under way and waits for the releases that have been sent, which have a deadline."""
        self._stream.cancel()
        self._fail_all(WorkerFailed(f"decode worker {self.worker.worker_id} has left the fleet"))
        await asyncio.wait([self._stream, *self._releases])
        await self.channel.close()

    async def _release(self, request_id: str, choices: tuple[int, ...]) -> None:
        message = decode_pb2.ReleaseRequest(request_id=request_id, choices=choices)
        try:
            async with self.channel.errors_translated():
                await self._stub.Release(message, timeout=CONTROL_TIMEOUT_S, metadata=self.channel.metadata)
        except BatonError as error:
            _log.warning("release of %s: %s", request_id, error.message)

    async def _hold_stream(self) -> None:
        """Opens the stream again whenever it breaks, for as long as the worker is there; complains once for each
        new reason, not at every attempt."""
        complaint = ""
        while True:
            try:
                await self._read_stream()
            except BatonError as error:
                if error.message != complaint:
                    complaint = error.message
                    _log.warning("decode worker %s: %s", self.worker.worker_id, complaint)
            finally:
                self.is_connected = False
            self._fail_all(WorkerFailed(f"the stream from decode worker {self.worker.worker_id} broke"))
            await asyncio.sleep(_RECONNECT_S)

    async def _read_stream(self) -> None:
        async with self.channel.errors_translated():
            request = decode_pb2.StreamRequest(router_id=self._router_id)
            call = self._steps = self._stub.Stream(request, metadata=self.channel.metadata)
            try:
                while call is not self._ended and (step := await self._next_step(call)) is not None:
                    if not self.is_connected:
                        self.is_connected = True
                        self._on_connected()
                    for message in step.requests:
                        leg = self._legs.get(message.request_id)
                        if leg is not None:
                            leg.put(message)
            finally:
                call.cancel()

    async def _next_step(self, call: _StepCall) -> decode_pb2.StepOutputs | None:
        """None at the end of the stream. The stream has no deadline, but each wait for its next message has."""
        try:
            async with asyncio.timeout(STREAM_SILENCE_S):
                step = await call.read()
        except TimeoutError:
            raise WorkerFailed(f"no sign of life for {STREAM_SILENCE_S:g} s, the limit") from None
        return step if isinstance(step, decode_pb2.StepOutputs) else None

    def _fail_all(self, error: BatonError) -> None:
        for leg in self._legs.values():
            leg.lose(error)


class _MovedOn:
    """In a leg's queue: another worker goes on from here."""


class DecodeLeg:
    """The tokens of one request from a decode worker. Bounded by the request's own max_tokens. has_refused: it gave
    no memory. has_moved_on: these were all that come from there, and another worker has the KV."""

    def __init__(self, peer: DecodePeer, request: GenerationRequest) -> None:
        self.is_on_worker = False
        self.has_refused = False
        self.has_moved_on = False
        self._peer = peer
        self._request = request
        self._heard = asyncio.Event()
        self._reserving: asyncio.Task[decode_pb2.ReserveReply] | None = None
        self._given_up: BatonError | None = None
        self._queue: asyncio.Queue[list[TokenOutput] | BatonError | _MovedOn] = asyncio.Queue()

    @property
    def worker(self) -> WorkerInfo:
        return self._peer.worker

    @property
    def is_to_move(self) -> bool:
        return self._peer.is_leaving and self.is_on_worker

    async def reserve(self, remaining_s: float, *, is_local: bool) -> decode_pb2.ReserveReply:
        self.is_on_worker = True
        self._peer.breaker.begin()
        with self._peer.breaker.counting():
            call = self._peer.reserve(self._request, remaining_s, is_local=is_local)
            self._reserving = asyncio.create_task(call)
            try:
                return await self._reserving
            except BatonError:
                self.has_refused = True
                raise
            except asyncio.CancelledError:
                if self._given_up is None or is_task_cancelled():
                    raise
                self.has_refused = True
                raise self._given_up from None

    async def start(self, first_outputs: list[TokenOutput]) -> None:
        with self._peer.breaker.counting():
            await self._peer.start(self._request.request_id, first_outputs)

    async def outputs(self) -> list[TokenOutput]:
        """The next tokens; raises the failure that ended the request on the worker."""
        outputs = await self._queue.get()
        if isinstance(outputs, BatonError):
            raise outputs
        if isinstance(outputs, _MovedOn):
            self.has_moved_on = True
            return []
        return outputs

    async def heard(self) -> None:
        """Waits until there is something for `outputs`, were it the end."""
        await self._heard.wait()

    async def hand_over(self, tokens: int, ticket: bytes, timeout_s: float) -> None:
        await self._peer.hand_over(self._request.request_id, tokens, ticket, timeout_s)

    def end_choice(self, choice: int) -> None:
        if self.is_on_worker:
            self._peer.release(self._request.request_id, choice)
        self.wake()  # who waits for this choice alone waits in vain

    def wake(self) -> None:
        """Lets `outputs` return, with nothing."""
        self._queue.put_nowait([])

    def put(self, message: decode_pb2.RequestOutputs) -> None:
        if message.outputs:
            outputs = [output_from_wire(output) for output in message.outputs]
            self._tell(outputs)
            if any(output.finish_reason is not None for output in outputs):
                self._peer.breaker.succeed()
        if message.HasField("failure"):
            failure = failure_from_wire(message.failure)
            self._peer.breaker.fail(failure)
            self.lose(failure)
        if message.handed_over:
            self.is_on_worker = False
            self._tell(_MovedOn())

    def lose(self, error: BatonError) -> None:
        """The worker has let go of the request. Where it had none yet, asking for it will tell."""
        if self.is_on_worker:
            self.is_on_worker = False
            self._tell(error)

    def give_up(self, error: BatonError) -> None:
        """Leaves the request to the worker for as long as it takes to tell it, but waits for nothing there."""
        if self.is_on_worker and self._given_up is None:
            self._given_up = error
            if self._reserving is not None:
                self._reserving.cancel()
            self._tell(error)

    def _tell(self, news: list[TokenOutput] | BatonError | _MovedOn) -> None:
        self._queue.put_nowait(news)
        self._heard.set()
