"""Requests whose first token is late are tried on a second pair of workers, too; who answers first serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from mini_fleet import WAIT_S, FleetOfTest, Script, until
from model_folders import prompt_ids
from routed_fleet import Router, routed
from stepped_pair import request

from baton.errors import HandoffFailed, WorkerFailed
from baton.fleet import Role
from baton.lifecycle import Transition
from baton.router.hedging import MOST_HEDGES
from baton.router.request_flow import FlowLimits
from baton.router.snapshot import Disaggregation

TOKENS = [[0, 1, 2], [0, 1, 2]]
AFTER_S = 0.05
ASKED = request(prompt_ids(9), n=2)
HEDGING = FlowLimits(policy="round_robin", hedge_after_s=AFTER_S)


@dataclass
class Trial:
    """A request that has come to where the script of its first pair halts, with a second pair beside it."""

    router: Router
    first: Script
    second: Script
    task: asyncio.Task[list[list[int]]]

    async def answer(self) -> list[list[int]]:
        async with asyncio.timeout(WAIT_S):
            return await self.task

    async def hedged(self) -> None:
        await until(lambda: "hedge" in self.router.transitions)


@asynccontextmanager
async def pairs(limits: FlowLimits, **scripts: Script) -> AsyncIterator[Router]:
    """A prefill and a decode worker of each script; the first request goes to the first of them."""
    fleet = FleetOfTest()
    async with AsyncExitStack() as stack:
        for name, script in scripts.items():
            for role in (Role.PREFILL, Role.DECODE):
                worker = fleet.scripted_worker(f"{name}-{role.value}", role, script)
                await stack.enter_async_context(worker)
        router = await stack.enter_async_context(routed(fleet, limits))
        await until(lambda: all(t.peer.is_connected for t in router.workers._tracked.values()))
        yield router


@asynccontextmanager
async def trial(first: Script, second: Script, limits: FlowLimits = HEDGING) -> AsyncIterator[Trial]:
    async with pairs(limits, a=first, b=second) as router:
        task = asyncio.create_task(router.collect(ASKED))
        async with asyncio.timeout(WAIT_S):
            await first.has_halted.wait()
        yield Trial(router, first, second, task)


@pytest.mark.parametrize("station", ["scheduled", "grant", "first_tokens"])
async def test_a_pair_that_is_late_is_outrun_by_another_and_left(station: str) -> None:
    async with trial(Script(station), Script()) as race:
        assert await race.answer() == TOKENS
        way = race.router.transitions
        assert way[-4:] == ["take_over", "first_tokens", "hand_off", "finish"]
        assert way[:-4] == ["place", *([] if station == "scheduled" else ["schedule"]), "hedge"]
        async with asyncio.timeout(WAIT_S):
            await race.first.has_prefill_ended.wait()
            if race.first.reserved:
                assert await race.first.released.get() in race.first.reserved


async def test_the_first_pair_serves_where_it_answers_first_and_the_second_is_left() -> None:
    async with trial(Script("first_tokens"), Script("first_tokens")) as race:
        await race.hedged()
        async with asyncio.timeout(WAIT_S):
            await race.second.has_halted.wait()
        race.first.may_go_on.set()
        assert await race.answer() == TOKENS
        assert race.router.transitions == ["place", "schedule", "hedge", "first_tokens", "hand_off", "finish"]
        async with asyncio.timeout(WAIT_S):
            await race.second.has_prefill_ended.wait()
            assert await race.second.released.get() in race.second.reserved


@pytest.mark.parametrize("who_fails", ["first", "second"])
async def test_where_one_of_the_two_fails_the_other_serves(who_fails: str) -> None:
    async with trial(Script("first_tokens"), Script("first_tokens")) as race:
        async with asyncio.timeout(WAIT_S):
            await race.second.has_halted.wait()
        failing, serving = (race.first, race.second) if who_fails == "first" else (race.second, race.first)
        failing.error = HandoffFailed("lost")
        failing.may_go_on.set()
        await until(lambda: "fall_out" in race.router.transitions)
        serving.may_go_on.set()
        assert await race.answer() == TOKENS
        assert "retry" not in race.router.transitions
        [fallen] = [e.attributes for e in race.router.events if e.transition is Transition.FALL_OUT]
        assert fallen["code"] == HandoffFailed.code
        assert fallen["prefill"] == f"{'a' if who_fails == 'first' else 'b'}-prefill"


async def test_where_both_fail_the_next_attempt_avoids_both() -> None:
    scripts = [Script("first_tokens") for _ in "abc"]
    async with pairs(HEDGING, **dict(zip("abc", scripts, strict=True))) as router:
        task = asyncio.create_task(router.collect(ASKED))
        await until(lambda: sum(script.has_halted.is_set() for script in scripts) == 2)
        for script in scripts:
            script.error = WorkerFailed("broken") if script.has_halted.is_set() else None
            script.may_go_on.set()
        async with asyncio.timeout(WAIT_S):
            assert await task == TOKENS
        assert router.transitions.count("retry") == 1
        assert [script.prefills for script in scripts] == [1, 1, 1]


async def test_a_pair_that_took_over_and_failed_is_the_one_that_is_avoided() -> None:
    late, scripts = (
        Script("first_tokens"),
        {name: Script("decoding", WorkerFailed("broken")) for name in "bc"},
    )
    async with pairs(HEDGING, a=late, **scripts) as router:
        task = asyncio.create_task(router.collect(ASKED))
        await until(lambda: "take_over" in router.transitions)
        late.may_go_on.set()
        [took_over] = [e.attributes for e in router.events if e.transition is Transition.TAKE_OVER]
        async with asyncio.timeout(WAIT_S):
            assert await task == TOKENS
        resumed = [e.attributes for e in router.events if e.transition is Transition.RESUME]
        assert resumed
        assert all(took_over["decode"] != where["decode"] for where in resumed[:2])


async def test_who_is_placed_next_sees_what_a_race_has_leased() -> None:
    limits = FlowLimits(policy="least_loaded", hedge_after_s=60.0)
    first, second = Script("first_tokens"), Script("first_tokens")
    async with pairs(limits, a=first, b=second) as router:
        asked = [replace(ASKED, request_id=f"request-{number}") for number in range(8)]
        tasks = [asyncio.create_task(router.collect(one)) for one in asked]
        await until(lambda: first.prefills + second.prefills == len(asked))
        first.may_go_on.set()
        second.may_go_on.set()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*tasks)
        assert first.prefills == second.prefills


async def test_a_client_that_leaves_a_race_leaves_both_pairs() -> None:
    async with trial(Script("grant"), Script("grant")) as race:
        async with asyncio.timeout(WAIT_S):
            await race.second.has_halted.wait()
        race.task.cancel()
        await asyncio.wait([race.task])
        for script in (race.first, race.second):
            async with asyncio.timeout(WAIT_S):
                await script.has_prefill_ended.wait()
                assert await script.released.get() in script.reserved
        assert race.router.transitions[-1] == "cancel"


async def test_a_decode_worker_that_is_late_with_a_prompt_of_its_own_is_outrun_too() -> None:
    limits = FlowLimits(
        policy="round_robin", hedge_after_s=AFTER_S, disaggregation=Disaggregation.NEVER, max_requests=4
    )
    first, second = Script("grant"), Script("grant")
    async with trial(first, second, limits) as race:
        await race.hedged()
        async with asyncio.timeout(WAIT_S):
            await race.second.has_halted.wait()
        race.task.cancel()
        await asyncio.wait([race.task])


async def test_without_another_pair_or_unasked_nothing_is_tried_twice() -> None:
    script = Script("first_tokens")
    async with pairs(HEDGING, a=script) as router:
        await _late(router, script)
        assert router.transitions == ["place", "schedule", "first_tokens", "hand_off", "finish"]
    first, second = Script("first_tokens"), Script()
    async with pairs(FlowLimits(policy="round_robin"), a=first, b=second) as router:
        await _late(router, first)
        assert second.prefills == 0


async def test_requests_that_are_late_all_the_time_are_not_all_tried_twice() -> None:
    first, second = Script("first_tokens"), Script("first_tokens")
    limits = FlowLimits(policy="round_robin", hedge_after_s=0.001)
    async with pairs(limits, a=first, b=second) as router:
        asked = [replace(ASKED, request_id=f"request-{number}") for number in range(2 * MOST_HEDGES)]
        tasks = [asyncio.create_task(router.collect(one)) for one in asked]
        await until(lambda: first.prefills + second.prefills >= 3 * MOST_HEDGES)
        first.may_go_on.set()
        second.may_go_on.set()
        async with asyncio.timeout(WAIT_S):
            assert await asyncio.gather(*tasks) == [TOKENS] * len(tasks)
        hedges = [event for event in router.events if event.transition.value == "hedge"]
        assert len(hedges) <= MOST_HEDGES + 0.05 * len(tasks)


async def _late(router: Router, script: Script) -> None:
    """A request that is held up for several times as long as it takes to hedge."""
    task = asyncio.create_task(router.collect(ASKED))
    async with asyncio.timeout(WAIT_S):
        await script.has_halted.wait()
    await asyncio.sleep(4 * AFTER_S)
    script.may_go_on.set()
    async with asyncio.timeout(WAIT_S):
        assert await task == TOKENS
