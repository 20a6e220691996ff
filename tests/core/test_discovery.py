"""The registry contract, over real sockets: one suite for the embedded registry and for a real Consul."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from consul_agent import ConsulAgent

from baton.discovery import open_registry
from baton.discovery.base import Registry, RegistryAccess, RegistryAddress
from baton.discovery.consul import ConsulRegistry
from baton.discovery.consul_api import ConsulApi
from baton.discovery.election import Candidacy
from baton.discovery.embedded import SERVICE, EmbeddedRegistry, RegistryServicer
from baton.discovery.embedded_client import EmbeddedRegistryClient
from baton.errors import ConfigError, InvalidRequest, Unauthorized, Unavailable
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
    max_running=64,
)
LOAD = WorkerLoad(1, 2, 3, KVBlocks(10, 4, 3, 2, 1), 5, 6, 7, HandoffTotals(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))


Connect = Callable[[bytes], Registry]


SHORT_LEASE = pytest.mark.parametrize("lease_s", [1.0])


@pytest.fixture
def lease_s() -> float:
    """Longer than a test; SHORT_LEASE puts another in its place."""
    return 30.0


@pytest.fixture
async def served(lease_s: float) -> AsyncIterator[tuple[EmbeddedRegistry, str]]:
    registry = EmbeddedRegistry(lease_s)
    server = Server("127.0.0.1", 0, SECRET)
    server.add(SERVICE, RegistryServicer(registry).mount)
    await server.start()
    yield registry, f"127.0.0.1:{server.port}"
    await server.stop(0)


@pytest.fixture(params=["embedded", "consul"])
async def connect(
    request: pytest.FixtureRequest, served: tuple[object, str], lease_s: float
) -> AsyncIterator[Connect]:
    """A new client of one registry, with the secret given."""
    async with AsyncExitStack() as cleanup:
        prefix = f"fleet-{secrets.token_hex(4)}"

        def client(secret: bytes) -> Registry:
            registry: Registry
            if request.param == "embedded":
                registry = EmbeddedRegistryClient(served[1], secret)
            else:
                agent: ConsulAgent = request.getfixturevalue("consul_agent")
                host, _, port = agent.address.partition(":")
                api = ConsulApi(RegistryAddress("consul", host, int(port), prefix), RegistryAccess())
                registry = ConsulRegistry(api, prefix, secret, lease_s)
            cleanup.push_async_callback(registry.close)
            return registry

        yield client


@pytest.fixture
def client(connect: Connect) -> Registry:
    return connect(SECRET)


async def until(watch: AsyncIterator[Fleet], condition: Callable[[Fleet], bool]) -> Fleet:
    async with asyncio.timeout(10):
        async for fleet in watch:
            if condition(fleet):
                return fleet
    raise AssertionError("the watch ended")


async def until_members(watch: AsyncIterator[Fleet], count: int) -> Fleet:
    return await until(watch, lambda fleet: len(fleet.members) == count)


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


# --- offices -----------------------------------------------------------------------------------------------


@SHORT_LEASE
async def test_of_two_candidates_one_at_a_time_leads_and_the_next_follows_who_resigns(
    connect: Connect,
) -> None:
    first, second = (Candidacy(connect(SECRET), "planner", name) for name in ("a", "b"))
    running = {candidacy: asyncio.create_task(candidacy.run()) for candidacy in (first, second)}

    async def next_leader(among: set[Candidacy]) -> Candidacy:
        async with asyncio.timeout(10):
            while True:
                leaders = {candidacy for candidacy in (first, second) if candidacy.is_leader}
                assert len(leaders) <= 1
                if leaders & among:
                    return leaders.pop()
                await asyncio.sleep(0.01)

    leader = await next_leader({first, second})
    running.pop(leader).cancel()
    follower = await next_leader(set(running))
    assert follower is not leader
    running[follower].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running[follower]
    assert not follower.is_leader


@SHORT_LEASE
async def test_who_falls_silent_loses_the_office(connect: Connect) -> None:
    silent, other = connect(SECRET), connect(SECRET)

    async def until_held(registry: Registry, candidate: str) -> None:
        async with asyncio.timeout(10):
            while True:
                if await registry.elect("planner", candidate):
                    return
                await asyncio.sleep(0.1)

    await until_held(silent, "a")
    assert await other.elect("planner", "b") == 0
    await until_held(other, "b")
    assert await silent.elect("planner", "a") == 0


# --- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("etcd://10.0.0.1:2379", "choices: embedded, consul"),
        ("consul://10.0.0.1", "host:port"),
        ("10.0.0.1", "host:port"),
        ("consul://10.0.0.1:port", "port"),
        ("consul://10.0.0.1:8500/a/b", "a/b"),
        ("consul://token@10.0.0.1:8500", "more than"),
        ("10.0.0.1:8100/fleet", "fleet"),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_the_reason(uri: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        open_registry(uri, SECRET, RegistryAccess())
    assert error.value.field == "registry"


def test_a_token_for_a_registry_without_users_is_refused() -> None:
    with pytest.raises(ConfigError, match="no token"):
        open_registry("10.0.0.1:8100", SECRET, RegistryAccess(token="t"))


# --- embedded ----------------------------------------------------------------------------------------------


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
