"""A request whose workers fail goes on elsewhere, for as long as the budget of retries lasts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mini_fleet import WAIT_S, FleetOfTest, Script, until
from model_folders import prompt_ids
from routed_fleet import Router, routed, scripted
from stepped_pair import request

from baton.errors import BatonError, HandoffFailed, Unavailable, WorkerFailed
from baton.fleet import Role
from baton.router.prompt_hashes import PromptHashes
from baton.router.request_flow import FlowLimits
from baton.router.retry_budget import RetryBudget


@asynccontextmanager
async def two_pairs(first: tuple[Script, Script], second: tuple[Script, Script]) -> AsyncIterator[Router]:
    """A prefill and a decode worker that follow `first`, and get the first request; and two for whoever retries."""
    fleet = FleetOfTest()
    async with (
        fleet.scripted_worker("p0", Role.PREFILL, first[0]),
        fleet.scripted_worker("d0", Role.DECODE, first[1]),
        fleet.scripted_worker("p1", Role.PREFILL, second[0]),
        fleet.scripted_worker("d1", Role.DECODE, second[1]),
        routed(fleet) as router,
    ):
        await until(lambda: all(tracked.peer.is_connected for tracked in router.workers._tracked.values()))
        yield router


@pytest.mark.parametrize("station", ["scheduled", "first_tokens", "grant"])
@pytest.mark.parametrize("error", [HandoffFailed("lost"), Unavailable("stopping"), WorkerFailed("broken")])
async def test_a_leg_that_fails_before_the_first_token_is_tried_elsewhere(
    station: str, error: BatonError
) -> None:
    bad, good = Script(station, error), Script()
    async with two_pairs((bad, bad), (good, good)) as router:
        assert await router.collect(request(prompt_ids(9))) == [[0, 1, 2]]
        assert router.transitions.count("retry") == 1
        assert router.transitions[-1] == "finish"
        assert (bad.prefills, good.prefills) == (1, 1)


async def test_a_retry_with_one_decode_worker_takes_the_other_prefill_worker() -> None:
    fleet = FleetOfTest()
    bad, good = Script("first_tokens", WorkerFailed("broken")), Script()
    async with (
        fleet.scripted_worker("a-bad-p", Role.PREFILL, bad),
        fleet.scripted_worker("good-p", Role.PREFILL, good),
        fleet.scripted_worker("d", Role.DECODE, good),
        routed(fleet) as router,
    ):
        assert await router.collect(request(prompt_ids(9))) == [[0, 1, 2]]
        assert (bad.prefills, good.prefills) == (1, 1)


async def test_a_prompt_whose_decode_worker_leaves_says_how_long_it_has_queued() -> None:
    fleet = FleetOfTest()
    leaving, script = Script("grant"), Script()
    async with (
        fleet.scripted_worker("p", Role.PREFILL, script),
        fleet.scripted_worker("a-leaving-d", Role.DECODE, leaving),
        fleet.scripted_worker("d", Role.DECODE, script),
        routed(fleet) as router,
    ):
        await until(lambda: all(t.peer.is_connected for t in router.workers._tracked.values()))
        answer = asyncio.create_task(router.collect(request(prompt_ids(9))))
        await leaving.has_halted.wait()
        halted_at_s = time.monotonic()
        await asyncio.sleep(0.05)
        leaving.error = Unavailable("this worker leaves its pool")
        halted_s = time.monotonic() - halted_at_s
        leaving.may_go_on.set()
        assert await answer == [[0, 1, 2]]
    first_s, second_s = script.waited_s
    assert second_s >= first_s + halted_s


async def test_a_dead_prefill_worker_is_passed_over_while_its_lease_runs() -> None:
    fleet = FleetOfTest()
    script = Script()
    async with fleet.scripted_worker("p0", Role.PREFILL, Script()):
        pass
    async with fleet.scripted_worker("d", Role.DECODE, script), routed(fleet) as router:
        await until(lambda: not router.workers.snapshot(PromptHashes((), ""), ()).prefill)


async def test_a_prefill_worker_that_dies_while_decode_memory_is_awaited_is_replaced_at_once() -> None:
    dying, full, good = Script("attach", WorkerFailed("died")), Script("grant"), Script()
    async with two_pairs((dying, full), (good, good)) as router:
        async with asyncio.timeout(WAIT_S):
            assert await router.collect(request(prompt_ids(9))) == [[0, 1, 2]]
        assert router.transitions.count("retry") == 1
        await full.until_told(has_prefill=False)


async def test_a_prefill_worker_that_dies_before_its_report_costs_nothing_where_decode_has_all() -> None:
    script = Script("handed_off", WorkerFailed("died"))
    async with scripted(script) as router:
        assert await router.collect(request(prompt_ids(9), n=2)) == [[0, 1, 2], [0, 1, 2]]
        assert router.transitions == ["place", "schedule", "first_tokens", "hand_off", "finish"]
        assert router.events[3].attributes["scheme"] == "unknown"


@pytest.mark.parametrize(
    ("station", "error"), [("handed_off", HandoffFailed("lost")), ("decoding", WorkerFailed("broken"))]
)
@pytest.mark.parametrize("choices", [1, 2])
async def test_what_is_lost_after_the_first_token_goes_on_elsewhere_choice_by_choice(
    station: str, error: BatonError, choices: int
) -> None:
    bad, good = Script(station, error), Script()
    async with two_pairs((bad, bad), (good, good)) as router:
        assert await router.collect(request(prompt_ids(9), n=choices)) == [[0, 1, 2]] * choices
        assert router.transitions.count("resume") == choices
        assert "retry" not in router.transitions
        assert good.generated_tokens == [1 if station == "handed_off" else 2] * choices


async def test_a_request_without_a_decode_worker_waits_for_one_and_no_longer_than_it_may() -> None:
    fleet, script = FleetOfTest(), Script()
    async with (
        fleet.scripted_worker("p0", Role.PREFILL, script),
        fleet.scripted_worker("d0", Role.DECODE, script),
    ):
        gone = fleet.members.pop("d0")
        router = Router(fleet, FlowLimits())
        waiting = asyncio.create_task(router.collect(request(prompt_ids(9))))
        await until(lambda: bool(router.workers.members))
        assert not waiting.done()
        fleet.members["d0"] = gone
        router.workers.update(fleet.snapshot)
        assert await waiting == [[0, 1, 2]]
        await router.workers.close()


async def test_retries_end_where_the_budget_of_all_requests_ends() -> None:
    budget = RetryBudget(ratio=0.5, limit=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.spend(), "half a retry is none"
    budget.earn()
    assert budget.spend()


async def test_a_fleet_that_fails_every_request_is_not_asked_more_often_than_the_budget_allows() -> None:
    script = Script("grant", WorkerFailed("broken"))
    limits = FlowLimits(max_requests=2, retry_ratio=0.0, attempts=10)
    async with scripted(script, limits) as router:
        for _ in range(4):
            with pytest.raises(WorkerFailed):
                await router.collect(request(prompt_ids(9)))
        assert len(script.reserved) == 4 + 2
