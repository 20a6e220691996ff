"""How a router keeps the stream on which a decode worker's tokens arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio
from mini_fleet import FleetOfTest, Script, ScriptedDecode, until
from model_folders import prompt_ids
from stepped_pair import SECRET, request

from baton.decode.servicer import SERVICE
from baton.errors import Unavailable
from baton.fleet import Role
from baton.router.decode_peer import DecodePeer
from baton.rpc import Server
from baton.wire import decode_pb2

STEP_S = 0.001


class _Backlogged(ScriptedDecode):
    """Has given up its first stream, whose steps still come, and takes requests once there is a second."""

    def __init__(self) -> None:
        super().__init__(Script())
        self.streams = 0

    async def Stream(
        self, request: decode_pb2.StreamRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[decode_pb2.StepOutputs]:
        self.streams += 1
        while True:
            yield decode_pb2.StepOutputs()
            await asyncio.sleep(STEP_S)

    async def Reserve(
        self, request: decode_pb2.ReserveRequest, context: aio.ServicerContext[Any, Any]
    ) -> decode_pb2.ReserveReply:
        if self.streams < 2:
            raise Unavailable("no stream here", field="router_id")
        return decode_pb2.ReserveReply(ticket=b"ticket")


async def test_a_router_that_is_told_it_has_no_stream_reads_its_old_one_no_further_and_opens_another() -> (
    None
):
    fleet, worker, server = FleetOfTest(), _Backlogged(), Server("127.0.0.1", 0, SECRET)
    server.add(SERVICE, worker.mount)
    await server.start()
    fleet.add("d", Role.DECODE, server.port)
    peer = DecodePeer(fleet.members["d"].worker, SECRET, "router", fleet.crashes.append, lambda: None)
    await until(lambda: peer.is_connected)
    asked = request(prompt_ids(20))
    with pytest.raises(Unavailable, match="no stream"):
        await peer.reserve(asked, 10.0, is_local=True)
    await until(lambda: worker.streams == 2 and peer.is_connected)
    assert (await peer.reserve(asked, 10.0, is_local=True)).ticket == b"ticket"
    await peer.close()
    await server.stop(0)
    assert not fleet.crashes
