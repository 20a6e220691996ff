"""Workers that announce nonsense, somebody else's name or an address where nobody is: refused with the reason, and
the others are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from announced_worker import SECRET, WORKER

from baton.discovery.embedded import SERVICE, SUSPECTED_SHARE, EmbeddedRegistry, RegistryServicer
from baton.discovery.embedded_client import EmbeddedRegistryClient
from baton.discovery.preflight import TIMEOUT_S, require_reachable
from baton.errors import BatonError, DuplicateWorker, InvalidRequest
from baton.fleet import KVBlocks, WorkerInfo, WorkerLoad, WorkerState
from baton.rpc import Server

LOAD = WorkerLoad()
OTHER = replace(WORKER, epoch=b"87654321", address="127.0.0.1:2", pid=8)
LEASE_S = 9.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def client() -> AsyncIterator[EmbeddedRegistryClient]:
    """Of a registry as a router serves it, preflight included."""
    server = Server("127.0.0.1", 0, SECRET)
    server.add(SERVICE, RegistryServicer(EmbeddedRegistry(LEASE_S), require_reachable).mount)
    await server.start()
    client = EmbeddedRegistryClient(f"127.0.0.1:{server.port}", SECRET)
    yield client
    await client.close()
    await server.stop(0)


@pytest.fixture
async def here() -> AsyncIterator[WorkerInfo]:
    """A worker whose address answers."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    yield replace(WORKER, address=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda w: replace(w, block_size=0), "block_size"),
        (lambda w: replace(w, model=replace(w.model, vocab_size=0)), "model.vocab_size"),
        (lambda w: replace(w, model=replace(w.model, max_model_tokens=0)), "model.max_model_tokens"),
        (lambda w: replace(w, profile=replace(w.profile, decode_step_s=float("nan"))), "decode_step_s"),
        (lambda w: replace(w, profile=replace(w.profile, prefill_tokens_per_s=-1.0)), "prefill_tokens_per_s"),
        (lambda w: replace(w, profile=replace(w.profile, copy_bytes_per_s=float("inf"))), "copy_bytes_per_s"),
        (lambda w: replace(w, address="nowhere"), "address"),
        (lambda w: replace(w, address="127.0.0.1:99999"), "address"),
    ],
)
async def test_nonsense_is_refused_by_field_and_nobody_joins(
    client: EmbeddedRegistryClient,
    here: WorkerInfo,
    spoil: Callable[[WorkerInfo], WorkerInfo],
    field: str,
) -> None:
    await client.register(here, WorkerState.READY, LOAD)
    with pytest.raises(InvalidRequest) as error:
        await client.register(spoil(replace(here, worker_id="nonsense")), WorkerState.READY, LOAD)
    assert error.value.field == field
    assert [member.worker.worker_id for member in (await anext(client.watch())).members] == [here.worker_id]


async def test_a_load_that_contradicts_itself_is_refused(
    client: EmbeddedRegistryClient, here: WorkerInfo
) -> None:
    with pytest.raises(InvalidRequest, match="7 blocks of 5"):
        await client.register(here, WorkerState.READY, WorkerLoad(kv_blocks=KVBlocks(total=5, free=7)))


async def test_an_address_where_nobody_answers_is_refused_with_the_reason(
    client: EmbeddedRegistryClient,
) -> None:
    """192.0.2.1 is set aside for documentation: either there is no way there, or nobody answers."""
    for address in ("127.0.0.1:1", "192.0.2.1:9"):
        async with asyncio.timeout(TIMEOUT_S + 3.0):
            with pytest.raises(BatonError, match=f"{address}.*cannot be reached.*--advertise"):
                await client.register(replace(WORKER, address=address), WorkerState.READY, LOAD)


# --- one id, two processes; on a clock of the test's own ----------------------------------------------------


def test_a_second_process_under_a_live_id_is_refused_and_the_first_stays() -> None:
    registry = EmbeddedRegistry(LEASE_S, Clock())
    registry.register(WORKER, WorkerState.READY, LOAD)
    with pytest.raises(DuplicateWorker, match=f"{WORKER.worker_id}.*process 7"):
        registry.register(OTHER, WorkerState.READY, LOAD)
    assert [member.worker for member in registry.fleet().members] == [WORKER]


def test_a_silent_worker_is_suspected_then_replaced_by_its_successor_for_good() -> None:
    clock = Clock()
    registry = EmbeddedRegistry(LEASE_S, clock)
    registry.register(WORKER, WorkerState.READY, LOAD)
    clock.now_s += LEASE_S * SUSPECTED_SHARE
    assert [member.state for member in registry.fleet().members] == [WorkerState.SUSPECTED]
    registry.register(OTHER, WorkerState.READY, LOAD)
    assert not registry.heartbeat(WORKER.worker_id, WORKER.epoch, WorkerState.READY, LOAD)
    with pytest.raises(DuplicateWorker):
        registry.register(WORKER, WorkerState.READY, LOAD)
    assert [member.worker for member in registry.fleet().members] == [OTHER]


def test_a_heartbeat_lifts_the_suspicion_and_draining_stays_draining() -> None:
    clock = Clock()
    registry = EmbeddedRegistry(LEASE_S, clock)
    registry.register(WORKER, WorkerState.READY, LOAD)
    clock.now_s += LEASE_S / 2
    assert registry.heartbeat(WORKER.worker_id, WORKER.epoch, WorkerState.READY, LOAD)
    assert [member.state for member in registry.fleet().members] == [WorkerState.READY]
    registry.heartbeat(WORKER.worker_id, WORKER.epoch, WorkerState.DRAINING, LOAD)
    clock.now_s += LEASE_S / 2
    assert [member.state for member in registry.fleet().members] == [WorkerState.DRAINING]
