"""Workers of one process behind real gRPC ports: whole ones over real engines, and scripted ones that stop or
fail where a test wants them to."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from grpc import aio
from stepped_pair import BLOCK_SIZE, SECRET, make_agent

from baton.decode import servicer as decode_servicer
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.errors import BatonError, HandoffFailed
from baton.fleet import (
    Fleet,
    KVBlocks,
    Member,
    ModelInfo,
    Role,
    WorkerInfo,
    WorkerLoad,
    WorkerProfile,
    WorkerState,
)
from baton.kvtransfer.layout import KVLayout
from baton.prefill import servicer as prefill_servicer
from baton.rpc import Server
from baton.wire import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc, types_pb2
from baton.worker.config import WorkerConfig
from baton.worker.live_profile import LiveProfile
from baton.worker.roles import MountedRole

WAIT_S = 10.0
LOAD = WorkerLoad(kv_blocks=KVBlocks(total=64, free=64))


_LAYOUT = KVLayout(
    model="fingerprint", dtype="float32", block_size=BLOCK_SIZE, layers=2, kv_heads=2, head_dim=16
)


async def until(condition: Callable[[], bool]) -> None:
    """What is waited for happens on other threads or in other tasks, with no event to wait on."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_in_use(engine: Engine) -> bool:
    return engine.blocks.usage().used + engine.blocks.usage().reserved > 0


@dataclass
class FleetOfTest:
    """The registry's part, played by the test."""

    members: dict[str, Member] = field(default_factory=dict)
    crashes: list[BaseException] = field(default_factory=list)

    def add(self, worker_id: str, role: Role, port: int, epoch: bytes | None = None) -> None:
        worker = WorkerInfo(
            worker_id=worker_id,
            epoch=epoch or secrets.token_bytes(8),
            role=role,
            address=f"127.0.0.1:{port}",
            pid=1,
            model=ModelInfo("m", "fingerprint", 2048, 320),
            kv_layout=msgspec.msgpack.encode(_LAYOUT),
            block_size=BLOCK_SIZE,
            profile=WorkerProfile(1000.0, 0.01, 1e9),
            version="0",
        )
        self.members[worker_id] = Member(worker, WorkerState.READY, LOAD)

    @property
    def snapshot(self) -> Fleet:
        return Fleet(tuple(self.members.values()))

    @asynccontextmanager
    async def whole_worker(self, worker_id: str, role: Role, engine: Engine) -> AsyncIterator[None]:
        """A worker as its own process mounts it, engine thread included."""
        config = WorkerConfig(role, worker_id, "m", engine.config, "", SECRET)
        loop, agent = EngineLoop(self.crashes.append), make_agent(engine)
        mounted = MountedRole(config, engine, loop, agent, LiveProfile(WorkerProfile()))
        server = Server("127.0.0.1", 0, SECRET)
        mounted.mount(server)
        await server.start()
        self.add(worker_id, role, server.port)
        yield
        await server.stop(0)
        await asyncio.to_thread(loop.stop)
        await asyncio.to_thread(agent.close)

    @asynccontextmanager
    async def scripted_worker(self, worker_id: str, role: Role, script: Script) -> AsyncIterator[None]:
        server = Server("127.0.0.1", 0, SECRET)
        if role is Role.PREFILL:
            server.add(prefill_servicer.SERVICE, ScriptedPrefill(script).mount)
        else:
            server.add(decode_servicer.SERVICE, ScriptedDecode(script).mount)
        await server.start()
        self.add(worker_id, role, server.port)
        yield
        await server.stop(0)


@dataclass
class Script:
    """halt_at: the station at which the workers wait until they `may_go_on`, and fail there where there is one:
    of "scheduled", "attach", "grant", "first_tokens", "handed_off", "started", "decoding". The rest is what
    they saw."""

    halt_at: str = ""
    error: BatonError | None = None
    has_halted: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    prefills: int = 0
    has_prefill_ended: asyncio.Event = field(default_factory=asyncio.Event)
    waited_s: list[float] = field(default_factory=list)
    generated_tokens: list[int] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)
    released: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def reach(self, station: str) -> None:
        if station == self.halt_at:
            self.has_halted.set()
            if self.error is None:
                await self.may_go_on.wait()
            if self.error is not None:
                raise self.error

    async def until_told(self, has_prefill: bool = True) -> None:
        """Until the workers know that what they had is over."""
        async with asyncio.timeout(WAIT_S):
            if has_prefill:
                await self.has_prefill_ended.wait()
            for request_id in self.reserved:
                assert await self.released.get() == request_id


class ScriptedPrefill(prefill_pb2_grpc.PrefillServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def mount(self, server: aio.Server) -> None:
        prefill_pb2_grpc.add_PrefillServicer_to_server(self, server)

    async def Run(
        self,
        request_iterator: AsyncIterator[prefill_pb2.PrefillCommand],
        context: aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        self._script.prefills += 1
        try:
            start = await anext(request_iterator)
            self._script.waited_s.append(start.start.waited_s)
            await self._script.reach("scheduled")
            yield prefill_pb2.PrefillEvent(scheduled=prefill_pb2.PrefillScheduled())
            await self._script.reach("attach")
            await anext(request_iterator)
            await self._script.reach("first_tokens")
            asked = start.start.request
            self._script.generated_tokens.append(asked.generated_tokens)
            outputs = [_output(choice, asked.generated_tokens) for choice in range(asked.n)]
            yield prefill_pb2.PrefillEvent(first_tokens=prefill_pb2.PrefillFirstTokens(outputs=outputs))
            await self._script.reach("handed_off")
            yield prefill_pb2.PrefillEvent(handed_off=prefill_pb2.PrefillHandedOff())
        finally:
            self._script.has_prefill_ended.set()


class ScriptedDecode(decode_pb2_grpc.DecodeServicer):
    """After its start a request gets further tokens of each choice, each its own index, up to 2, the last."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._started: asyncio.Queue[decode_pb2.StartRequest] = asyncio.Queue()

    def mount(self, server: aio.Server) -> None:
        decode_pb2_grpc.add_DecodeServicer_to_server(self, server)

    async def Stream(
        self, request: decode_pb2.StreamRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[decode_pb2.StepOutputs]:
        yield decode_pb2.StepOutputs()
        while True:
            started = await self._started.get()
            choices = [output.choice for output in started.first_outputs]
            await self._script.reach("started")
            if started.first_outputs[0].index == 0:
                yield _step(started.request_id, [_output(choice, 1) for choice in choices])
            await self._script.reach("decoding")
            last = [_output(choice, 2) for choice in choices]
            yield _step(started.request_id, last)

    async def Reserve(
        self, request: decode_pb2.ReserveRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.ReserveReply:
        self._script.reserved.append(request.request.request_id)
        await self._script.reach("grant")
        return decode_pb2.ReserveReply(ticket=b"ticket")

    async def Start(
        self, request: decode_pb2.StartRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.StartReply:
        self._started.put_nowait(request)
        return decode_pb2.StartReply()

    async def HandOver(
        self, request: decode_pb2.HandOverRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.HandOverReply:
        raise HandoffFailed("a scripted worker has no blocks")

    async def Release(
        self, request: decode_pb2.ReleaseRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.ReleaseReply:
        self._script.released.put_nowait(request.request_id)
        return decode_pb2.ReleaseReply()


def _output(choice: int, index: int) -> types_pb2.TokenOutput:
    reason = types_pb2.FINISH_REASON_LENGTH if index == 2 else types_pb2.FINISH_REASON_UNSPECIFIED
    return types_pb2.TokenOutput(choice=choice, index=index, token_id=index, finish_reason=reason)


def _step(request_id: str, outputs: list[types_pb2.TokenOutput]) -> decode_pb2.StepOutputs:
    return decode_pb2.StepOutputs(
        requests=[decode_pb2.RequestOutputs(request_id=request_id, outputs=outputs)]
    )
