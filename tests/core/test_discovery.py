"""The registry contract, over real gRPC on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from baton.discovery.embedded import SERVICE, EmbeddedRegistry, EmbeddedRegistryClient, RegistryServicer
from baton.errors import InvalidRequest, Unauthorized, Unavailable
from baton.fleet import (
    Fleet,
    HandoffTotals,
    KVBlocks,
    ModelInfo,
    Role,
    WorkerInfo,
    WorkerLoad,
    WorkerProfile,
    WorkerState,
)
from baton.rpc import Server

SECRET = b"a secret of the test's own"
WORKER = WorkerInfo(
    worker_id="decode-0",
    epoch=b"12345678",
    role=Role.DECODE,
    address="127.0.0.1:1",
    pid=7,
    model=ModelInfo("m", "fingerprint", 2048, 320, (1, 2)),
    kv_layout=b"layout",
    block_size=16,
    profile=WorkerProfile(1000.0, 0.01, 1e9, 1e-7, 1e-3, 1e-6),
    version="0",
    schemes=("shm", "tcp"),
)
LOAD = WorkerLoad(1, 2, 3, KVBlocks(10, 4, 3, 2, 1), 5, 6, 7, HandoffTotals(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))


@pytest.fixture
async def served() -> AsyncIterator[tuple[EmbeddedRegistry, str]]:
    registry = EmbeddedRegistry(lease_s=0.3)
    server = Server("127.0.0.1", 0, SECRET)
    server.add(SERVICE, RegistryServicer(registry).mount)
    await server.start()
    yield registry, f"127.0.0.1:{server.port}"
    await server.stop(0)


@pytest.fixture
async def client(served: tuple[EmbeddedRegistry, str]) -> AsyncIterator[EmbeddedRegistryClient]:
    registry_client = EmbeddedRegistryClient(served[1], SECRET)
    yield registry_client
    await registry_client.close()


async def until_members(watch: AsyncIterator[Fleet], count: int) -> Fleet:
    async with asyncio.timeout(5):
        async for fleet in watch:
            if len(fleet.members) == count:
                return fleet
    raise AssertionError("the watch ended")


async def test_a_registered_worker_is_seen_whole(client: EmbeddedRegistryClient) -> None:
    assert await client.register(WORKER, WorkerState.READY, LOAD) == pytest.approx(0.3)
    fleet = await until_members(client.watch(), 1)
    assert fleet.members[0].worker == WORKER
    assert fleet.members[0].load == LOAD
    assert fleet.members[0].state is WorkerState.READY


async def test_a_silent_worker_vanishes_when_its_lease_ends(client: EmbeddedRegistryClient) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    watch = client.watch()
    await until_members(watch, 1)
    await until_members(watch, 0)
    assert not await client.heartbeat(WORKER, WorkerState.READY, LOAD)


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
    registry = EmbeddedRegistry(lease_s=0.2)
    workers = [replace(WORKER, worker_id=f"decode-{number}") for number in range(50)]

    def beat(load: WorkerLoad) -> None:
        for worker in workers:
            assert registry.heartbeat(worker.worker_id, worker.epoch, WorkerState.READY, load)

    for worker in workers:
        registry.register(worker, WorkerState.READY, LOAD)
    watch = registry.watch()
    assert len((await anext(watch)).members) == 50
    looking = asyncio.ensure_future(anext(watch))
    for _ in range(8):
        beat(LOAD)
        await asyncio.sleep(0.05)
    assert not looking.done(), "every lease was renewed and nothing else happened"
    busy = replace(LOAD, running=9)
    beat(busy)
    assert [member.load for member in (await looking).members] == [busy] * 50


async def test_heartbeats_keep_the_lease_and_carry_state(client: EmbeddedRegistryClient) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    for _ in range(6):
        await asyncio.sleep(0.1)
        assert await client.heartbeat(WORKER, WorkerState.DRAINING, LOAD)
    fleet = await until_members(client.watch(), 1)
    assert fleet.members[0].state is WorkerState.DRAINING


async def test_a_new_epoch_replaces_its_predecessor(client: EmbeddedRegistryClient) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    successor = replace(WORKER, epoch=b"87654321", pid=8)
    await client.register(successor, WorkerState.READY, LOAD)
    assert not await client.heartbeat(WORKER, WorkerState.READY, LOAD), "the old process has no lease"
    await client.deregister(WORKER)
    fleet = await until_members(client.watch(), 1)
    assert fleet.members[0].worker.pid == 8


async def test_a_worker_that_leaves_is_gone_at_once(client: EmbeddedRegistryClient) -> None:
    await client.register(WORKER, WorkerState.READY, LOAD)
    await client.deregister(WORKER)
    await until_members(client.watch(), 0)


async def test_nonsense_is_refused_by_field(client: EmbeddedRegistryClient) -> None:
    with pytest.raises(InvalidRequest, match="address") as error:
        await client.register(replace(WORKER, address=""), WorkerState.READY, LOAD)
    assert error.value.field == "address"


async def test_a_wrong_secret_is_refused(served: tuple[EmbeddedRegistry, str]) -> None:
    stranger = EmbeddedRegistryClient(served[1], b"another secret altogether")
    with pytest.raises(Unauthorized):
        await stranger.register(WORKER, WorkerState.READY, LOAD)
    await stranger.close()
    assert served[0].fleet().members == ()


async def test_an_unreachable_registry_is_an_error_within_its_deadline() -> None:
    nobody = EmbeddedRegistryClient("127.0.0.1:1", SECRET)
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await nobody.heartbeat(WORKER, WorkerState.READY, LOAD)
    await nobody.close()


async def test_a_port_in_use_is_named(served: tuple[EmbeddedRegistry, str]) -> None:
    port = int(served[1].split(":")[1])
    with pytest.raises(Unavailable, match=str(port)):
        Server("127.0.0.1", port, SECRET)
