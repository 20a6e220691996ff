"""The registry contract, over real sockets: one suite for the embedded registry and for a real Consul."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from announced_worker import LOAD, SECRET, WORKER
from registry_client import Connect, until, until_members

from baton.discovery import open_registry
from baton.discovery.base import Registry, RegistryAccess
from baton.errors import InvalidRequest, Unavailable
from baton.fleet import WorkerInfo, WorkerState

SHORT_LEASE = pytest.mark.parametrize("lease_s", [1.0])


async def keep_beating(client: Registry, worker: WorkerInfo) -> None:
    while await client.heartbeat(worker, WorkerState.READY, LOAD):  # noqa: ASYNC110 - as a worker does
        await asyncio.sleep(0.05)


async def test_a_registered_worker_is_seen_whole(client: Registry, lease_s: float) -> None:
    assert await client.register(WORKER, WorkerState.READY, LOAD) == lease_s
    fleet = await until_members(client.watch(), 1)
    assert fleet.members[0].worker == WORKER
    assert fleet.members[0].load == LOAD
    assert fleet.members[0].state is WorkerState.READY


@SHORT_LEASE
async def test_a_silent_worker_vanishes_when_its_lease_ends_and_may_come_back(client: Registry) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    watch = client.watch()
    await until_members(watch, 1)
    await until_members(watch, 0)
    if not await client.heartbeat(WORKER, WorkerState.READY, LOAD):
        await client.register(WORKER, WorkerState.READY, LOAD)
    await until_members(watch, 1)


async def test_a_heartbeat_of_a_worker_that_never_registered_is_false(client: Registry) -> None:
    assert not await client.heartbeat(WORKER, WorkerState.READY, LOAD)


@SHORT_LEASE
async def test_heartbeats_keep_the_lease_and_carry_state_and_load(client: Registry) -> None:
    lease_s = await client.register(WORKER, WorkerState.READY, LOAD)
    busy = replace(LOAD, running=100)
    for _ in range(5):
        await asyncio.sleep(lease_s / 4)
        assert await client.heartbeat(WORKER, WorkerState.DRAINING, busy)
    fleet = await until(client.watch(), lambda fleet: fleet.members[0].load == busy)
    assert fleet.members[0].state is WorkerState.DRAINING


async def test_a_heartbeat_carries_a_corrected_profile(client: Registry) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    corrected = replace(WORKER, profile=replace(WORKER.profile, decode_step_s=0.5, handoff_latency_s=0.1))
    assert await client.heartbeat(WORKER, WorkerState.READY, LOAD)

    async with asyncio.TaskGroup() as group:
        beats = group.create_task(keep_beating(client, corrected))
        fleet = await until(client.watch(), lambda fleet: fleet.members[0].worker == corrected)
        beats.cancel()
    assert len(fleet.members) == 1


@pytest.mark.parametrize("speed", [-1.0, math.nan, math.inf])
async def test_a_speed_that_is_none_is_refused_by_field(client: Registry, speed: float) -> None:
    worker = replace(WORKER, profile=replace(WORKER.profile, decode_step_s=speed))
    with pytest.raises(InvalidRequest, match="decode_step_s"):
        await client.register(worker, WorkerState.READY, LOAD)


async def test_a_new_epoch_replaces_its_predecessor(connect: Connect) -> None:
    before, after = connect(SECRET), connect(SECRET)
    await before.register(WORKER, WorkerState.READY, LOAD)
    successor = replace(WORKER, epoch=b"87654321", pid=8)
    await after.register(successor, WorkerState.READY, LOAD)
    assert not await before.heartbeat(WORKER, WorkerState.READY, LOAD), "the old process has no lease"
    await before.deregister(WORKER)
    fleet = await until_members(after.watch(), 1)
    assert fleet.members[0].worker.pid == 8


async def test_a_worker_that_leaves_is_gone_at_once(client: Registry) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    await client.register(replace(WORKER, worker_id="decode-1"), WorkerState.READY, LOAD)
    watch = client.watch()
    await until_members(watch, 2)
    await client.deregister(WORKER)
    fleet = await until_members(watch, 1)
    assert fleet.members[0].worker.worker_id == "decode-1"


async def test_nonsense_is_refused_by_field(client: Registry) -> None:
    with pytest.raises(InvalidRequest, match="address") as error:
        await client.register(replace(WORKER, address=""), WorkerState.READY, LOAD)
    assert error.value.field == "address"


@pytest.mark.parametrize("scheme", ["embedded", "consul"])
async def test_an_unreachable_registry_is_an_error_within_its_deadline(scheme: str) -> None:
    nobody = open_registry(f"{scheme}://127.0.0.1:1", SECRET, RegistryAccess())
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await nobody.register(WORKER, WorkerState.READY, LOAD)
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await anext(nobody.watch())
    await nobody.close()
