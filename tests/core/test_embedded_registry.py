"""The registry that a router serves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from announced_worker import LOAD, SECRET, WORKER

from baton.discovery.embedded import EmbeddedRegistry
from baton.discovery.embedded_client import EmbeddedRegistryClient
from baton.errors import Unauthorized, Unavailable
from baton.fleet import WorkerLoad, WorkerState
from baton.rpc import Server


async def test_a_stall_of_the_registry_itself_evicts_nobody() -> None:
    now_s = 0.0
    registry = EmbeddedRegistry(lease_s=3.0, clock=lambda: now_s)
    registry.register(WORKER, WorkerState.READY, LOAD)
    registry.register(replace(WORKER, worker_id="dead"), WorkerState.READY, LOAD)
    watch = registry.watch()
    assert len((await anext(watch)).members) == 2
    now_s = 10.0  # the event loop stood still, and one worker's heartbeat has been waiting to be read
    looking = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    assert registry.heartbeat(WORKER.worker_id, WORKER.epoch, WorkerState.READY, LOAD)
    fleet = await looking
    while len(fleet.members) > 1:
        fleet = await anext(watch)
    assert [member.worker.worker_id for member in fleet.members] == [WORKER.worker_id]


async def test_a_watch_is_silent_while_heartbeats_tell_nothing_new_and_tells_many_changes_at_once() -> None:
    registry = EmbeddedRegistry(lease_s=1.0)
    workers = [replace(WORKER, worker_id=f"decode-{number}") for number in range(50)]

    def beat(load: WorkerLoad) -> None:
        for worker in workers:
            assert registry.heartbeat(worker.worker_id, worker.epoch, WorkerState.READY, load)

    for worker in workers:
        registry.register(worker, WorkerState.READY, LOAD)
    watch = registry.watch()
    assert len((await anext(watch)).members) == 50
    looking = asyncio.ensure_future(anext(watch))
    for _ in range(12):
        beat(LOAD)
        await asyncio.sleep(0.1)
    assert not looking.done(), "every lease was renewed and nothing else happened"
    busy = replace(LOAD, running=9)
    beat(busy)
    assert [member.load for member in (await looking).members] == [busy] * 50


async def test_a_wrong_secret_is_refused(served: tuple[EmbeddedRegistry, str]) -> None:
    stranger = EmbeddedRegistryClient(served[1], b"another secret altogether")
    with pytest.raises(Unauthorized):
        await stranger.register(WORKER, WorkerState.READY, LOAD)
    await stranger.close()
    assert served[0].fleet().members == ()


async def test_a_port_in_use_is_named(served: tuple[EmbeddedRegistry, str]) -> None:
    port = int(served[1].split(":")[1])
    with pytest.raises(Unavailable, match=str(port)):
        Server("127.0.0.1", port, SECRET)
