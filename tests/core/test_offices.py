"""The contract of offices: one leads at a time, and a lease ends who has fallen silent."""

from __future__ import annotations

import asyncio

import pytest
from announced_worker import SECRET
from registry_client import Connect

from baton.discovery.base import Registry
from baton.discovery.election import Candidacy

pytestmark = pytest.mark.parametrize("lease_s", [1.0])


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
