"""The end of a session between a router and its workers, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from grpc import aio
from mini_fleet import FleetOfTest, until
from stepped_pair import SECRET

from baton.errors import Overloaded, Unavailable
from baton.fleet import Member, Role, WorkerState
from baton.router.sessions import MAX_FINISHING, Sessions
from baton.rpc import CONTROL_TIMEOUT_S, Channel, Server
from baton.wire import control_pb2, control_pb2_grpc
from baton.worker.control import SERVICE

KEY = b"k" * 16


class Worker(control_pb2_grpc.ControlServicer):
    """Has `blocks` of any session; answers once `may_answer`."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.asked: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def mount(self, server: aio.Server) -> None:
        control_pb2_grpc.add_ControlServicer_to_server(self, server)

    async def ChangeRole(
        self, request: control_pb2.ChangeRoleRequest, context: aio.ServicerContext[Any, Any]
    ) -> control_pb2.ChangeRoleReply:
        raise Unavailable("this worker keeps its role")

    async def FinishSession(
        self, request: control_pb2.FinishSessionRequest, context: aio.ServicerContext[Any, Any]
    ) -> control_pb2.FinishSessionReply:
        self.asked.append(request.session_key)
        await self.may_answer.wait()
        return control_pb2.FinishSessionReply(blocks=self.blocks)


@asynccontextmanager
async def reached(*workers: Worker | None, secret: bytes = SECRET) -> AsyncIterator[dict[str, Channel]]:
    """Channels to these workers; None is one of a version that knows no sessions."""
    channels: dict[str, Channel] = {}
    servers = []
    for number, worker in enumerate(workers):
        server = Server("127.0.0.1", 0, SECRET)
        if worker is not None:
            server.add(SERVICE, worker.mount)
        await server.start()
        servers.append(server)
        channels[f"w{number}"] = Channel(f"127.0.0.1:{server.port}", secret)
    yield channels
    for channel in channels.values():
        await channel.close()
    for server in servers:
        await server.stop(0)


async def test_every_worker_is_told_and_what_they_give_up_is_added() -> None:
    workers = [Worker(2), Worker(0), Worker(5)]
    async with reached(*workers) as channels:
        sessions = Sessions(lambda: channels, list)
        finished = await sessions.finish(KEY)
    assert finished.blocks == 7
    assert finished.workers == {"w0": 2, "w1": 0, "w2": 5}
    assert finished.unconfirmed == []
    assert [worker.asked for worker in workers] == [[KEY]] * 3
    assert (sessions.counts.finished, sessions.counts.blocks, sessions.counts.unconfirmed) == (1, 7, 0)


async def test_a_worker_that_does_not_confirm_is_named() -> None:
    async with reached(Worker(2), None) as channels:
        gone = Channel("127.0.0.1:1", SECRET)
        finished = await Sessions(lambda: channels | {"gone": gone}, list).finish(KEY)
        await gone.close()
    assert finished.workers == {"w0": 2}
    assert finished.unconfirmed == ["w1", "gone"]


@pytest.mark.parametrize("state", [WorkerState.STALLED, WorkerState.SUSPECTED])
async def test_a_worker_that_hangs_is_told_but_not_waited_for(state: WorkerState) -> None:
    well, hung = Worker(2), Worker(5)
    hung.may_answer.clear()
    async with reached(well, hung) as channels:
        sessions = Sessions(lambda: channels, lambda: [member("w0"), replace(member("w1"), state=state)])
        async with asyncio.timeout(CONTROL_TIMEOUT_S):
            finished = await sessions.finish(KEY)
        assert (finished.workers, finished.unconfirmed) == ({"w0": 2}, ["w1"])
        await until(lambda: hung.asked == [KEY])
        hung.may_answer.set()
        finished = await sessions.finish(KEY)
        assert finished.workers == {"w0": 2, "w1": 5}, "a doubt that was wrong costs nothing"


def member(worker_id: str) -> Member:
    fleet = FleetOfTest()
    fleet.add(worker_id, Role.DECODE, port=1)
    return fleet.members[worker_id]


async def test_where_nobody_confirms_the_session_is_not_finished() -> None:
    async with reached(None) as channels:
        sessions = Sessions(lambda: channels, list)
        with pytest.raises(Unavailable, match="no worker"):
            await sessions.finish(KEY)
    with pytest.raises(Unavailable, match="no worker"):
        await Sessions(dict, list).finish(KEY)
    assert sessions.counts.finished == 0


async def test_who_lacks_the_secret_finishes_nothing() -> None:
    worker = Worker(2)
    async with reached(worker, secret=b"another secret" * 4) as channels:
        with pytest.raises(Unavailable):
            await Sessions(lambda: channels, list).finish(KEY)
    assert worker.asked == []


async def test_sessions_that_are_being_finished_are_bounded() -> None:
    worker = Worker(1)
    worker.may_answer.clear()
    async with reached(worker) as channels:
        sessions = Sessions(lambda: channels, list)
        under_way = [asyncio.create_task(sessions.finish(KEY)) for _ in range(MAX_FINISHING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=str(MAX_FINISHING)):
            await sessions.finish(KEY)
        worker.may_answer.set()
        assert [finished.blocks for finished in await asyncio.gather(*under_way)] == [1] * MAX_FINISHING
        assert (await sessions.finish(KEY)).blocks == 1
