"""The registry on a real Consul through what goes wrong with one: outages, lost memory, strangers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import httpx
import pytest
from announced_worker import SECRET, WORKER
from consul_agent import ConsulAgent
from consul_fleet import CONVERGENCE_S, LEASE_S, following, joined, registry

from baton.discovery import open_registry
from baton.discovery.base import RegistryAccess
from baton.discovery.consul import REPEAT_LEASES
from baton.errors import ConfigError
from baton.fleet import WorkerLoad, WorkerState

OTHER = replace(WORKER, worker_id="decode-1")


@pytest.fixture
def agent() -> Iterator[ConsulAgent]:
    """One of the test's own, to be ill-treated."""
    with ConsulAgent() as own:
        yield own


async def test_a_consul_killed_and_restarted_empty_costs_no_member_and_forgets_who_died_meanwhile(
    agent: ConsulAgent,
) -> None:
    async with following(agent) as follower, joined(agent, WORKER):
        async with joined(agent, OTHER):
            await follower.until("decode-0", "decode-1")
            agent.kill()
            before = len(follower.seen)
            await asyncio.sleep(LEASE_S)
            assert follower.seen[before:] == [], "the last known members stay"
        await asyncio.to_thread(agent.start)
        async with asyncio.timeout(CONVERGENCE_S):
            await follower.until("decode-0")
        assert all("decode-0" in fleet for fleet in follower.seen[before:])


async def test_a_consul_that_stands_still_for_longer_than_the_leases_costs_no_member(
    agent: ConsulAgent,
) -> None:
    async with following(agent) as follower, joined(agent, WORKER):
        await follower.until("decode-0")
        before = len(follower.seen)
        agent.pause()
        await asyncio.sleep(2 * LEASE_S)
        agent.resume()
        async with asyncio.timeout(CONVERGENCE_S), joined(agent, OTHER):
            await follower.until("decode-0", "decode-1")
        assert all("decode-0" in fleet for fleet in follower.seen[before:])


async def test_a_router_that_starts_before_consul_meets_the_fleet_when_consul_is_there(
    agent: ConsulAgent,
) -> None:
    agent.kill()
    async with following(agent) as follower, joined(agent, WORKER):
        await asyncio.sleep(0.5)
        assert follower.seen == []
        await asyncio.to_thread(agent.start)
        await follower.until("decode-0")


async def test_a_report_that_reaches_consul_late_does_not_stay(consul_agent: ConsulAgent) -> None:
    """As one does that was under way when the network was cut, and was given up by the worker."""
    worker, late = (registry(consul_agent, "late") for _ in range(2))
    await worker.register(WORKER, WorkerState.READY, WorkerLoad())
    await late.register(WORKER, WorkerState.DRAINING, WorkerLoad(running=5))

    async def believed() -> tuple[WorkerState, int]:
        async with aclosing(worker.watch()) as watch:
            [member] = (await anext(watch)).members
        return member.state, member.load.running

    assert await believed() == (WorkerState.DRAINING, 5)
    async with asyncio.timeout(REPEAT_LEASES * LEASE_S + CONVERGENCE_S):
        while await believed() != (WorkerState.READY, 0):
            assert await worker.heartbeat(WORKER, WorkerState.READY, WorkerLoad())
            await asyncio.sleep(0.1)
    for client in (worker, late):
        await client.close()


# --- several fleets, strangers -----------------------------------------------------------------------------


async def test_fleets_with_prefixes_of_their_own_do_not_see_each_other(consul_agent: ConsulAgent) -> None:
    ours, theirs = (registry(consul_agent, prefix) for prefix in ("ours", "theirs"))
    await theirs.register(WORKER, WorkerState.READY, WorkerLoad())
    assert (await anext(ours.watch())).members == ()
    assert len((await anext(theirs.watch())).members) == 1
    for client in (ours, theirs):
        await client.close()


async def test_a_worker_of_another_secret_or_a_forged_entry_never_enters_the_fleet(
    consul_agent: ConsulAgent, caplog: pytest.LogCaptureFixture
) -> None:
    ours, stranger = registry(consul_agent, "f"), registry(consul_agent, "f", b"another secret altogether")
    await stranger.register(OTHER, WorkerState.READY, WorkerLoad())
    for number, meta in enumerate([{}, {"record-0": "!"}, {"record-0": "AAAA", "signature": "00"}]):
        entry = {"name": "f-workers", "id": f"forged-{number}", "meta": meta}
        url = f"http://{consul_agent.address}/v1/agent/service/register"
        put = partial(httpx.put, url, json=entry, trust_env=False)
        (await asyncio.to_thread(put)).raise_for_status()
    await ours.register(WORKER, WorkerState.READY, WorkerLoad())
    fleet = await anext(ours.watch())
    assert [member.worker.worker_id for member in fleet.members] == ["decode-0"]
    for name in ("f-workers:decode-1", "forged-0", "forged-1", "forged-2"):
        assert f"service {name} on Consul is not used: " in caplog.text
    for client in (ours, stranger):
        await client.close()


@pytest.mark.parametrize("prefix", ["-a", "a_b", "a" * 49, "ä"])
def test_a_prefix_that_consul_cannot_have_in_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="prefix") as error:
        open_registry(f"consul://127.0.0.1:1/{prefix}", SECRET, RegistryAccess())
    assert error.value.field == "registry"
