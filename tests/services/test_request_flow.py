"""The router's request flow over real gRPC: placements, retries, deadlines, cancellation, and what it leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from mini_fleet import FleetOfTest, Script, is_in_use, until
from model_folders import prompt_ids
from routed_fleet import Router, routed, scripted
from stepped_pair import GREEDY, request, undisturbed

from baton.engine.engine import Engine
from baton.errors import (
    BatonError,
    DeadlineExceeded,
    HandoffFailed,
    QueueTimeout,
    Unavailable,
    WorkerFailed,
)
from baton.fleet import Fleet, Role
from baton.lifecycle import Transition
from baton.router.prompt_hashes import PromptHashes
from baton.router.request_flow import FlowLimits
from baton.router.retry_budget import RetryBudget

WAIT_S = 10.0
STATIONS = ["scheduled", "grant", "first_tokens", "handed_off", "decoding"]


@pytest.fixture
def engines(engine_of: Callable[[str, int], Engine]) -> tuple[Engine, Engine, Engine]:
    return engine_of("prefill", 64), engine_of("decode", 64), engine_of("oracle", 64)


async def test_requests_over_whole_workers_get_the_tokens_of_undisturbed_runs(
    engines: tuple[Engine, Engine, Engine],
) -> None:
    prefill, decode, oracle = engines
    fleet = FleetOfTest()
    asked = [request(prompt_ids(5 + 7 * seed, seed=seed), n=1 + seed % 2) for seed in range(6)]
    async with (
        fleet.whole_worker("p0", Role.PREFILL, prefill),
        fleet.whole_worker("d0", Role.DECODE, decode),
        routed(fleet) as router,
    ):
        answers = await asyncio.gather(*(router.collect(one) for one in asked))
    assert answers == [undisturbed(oracle, one) for one in asked]
    for engine in (prefill, decode):
        assert not is_in_use(engine)
        engine.blocks.clear_cache()


async def test_a_whole_life_follows_the_table(engines: tuple[Engine, Engine, Engine]) -> None:
    prefill, decode, _ = engines
    fleet = FleetOfTest()
    async with (
        fleet.whole_worker("p0", Role.PREFILL, prefill),
        fleet.whole_worker("d0", Role.DECODE, decode),
        routed(fleet) as router,
    ):
        await router.collect(request(prompt_ids(9)))
        assert router.transitions == ["place", "schedule", "first_tokens", "hand_off", "finish"]
        predicted, realised = router.events[0].attributes, router.events[-1].attributes
        terms = [
            predicted[f"predicted_{term}_s"] for term in ("queue", "prefill", "reserve", "handoff", "step")
        ]
        assert all(float(term) >= 0 for term in terms)
        error_s = float(realised["ttft_s"]) - float(predicted["predicted_ttft_s"])
        assert float(realised["ttft_error_s"]) <= error_s, "the request arrived before it was placed"
        assert "tpot_error_s" in realised
    async with fleet.whole_worker("d0", Role.DECODE, decode):
        del fleet.members["p0"]
        async with routed(fleet) as router:
            await router.collect(request(prompt_ids(9)))
            assert router.transitions == ["place", "schedule", "decode_locally", "finish"]
    for engine in (prefill, decode):
        engine.blocks.clear_cache()


async def test_leaving_whole_workers_at_any_moment_returns_every_block(
    engines: tuple[Engine, Engine, Engine],
) -> None:
    prefill, decode, _ = engines
    fleet = FleetOfTest()
    async with (
        fleet.whole_worker("p0", Role.PREFILL, prefill),
        fleet.whole_worker("d0", Role.DECODE, decode),
        routed(fleet) as router,
    ):
        endless = replace(GREEDY, max_tokens=150)
        for number in range(20):
            task = asyncio.create_task(router.collect(request(prompt_ids(60, seed=number), endless)))
            await asyncio.sleep(0.004 * number)
            task.cancel()
            await asyncio.wait([task])
        await until(lambda: not any(is_in_use(engine) for engine in (prefill, decode)))
    for engine in (prefill, decode):
        engine.blocks.clear_cache()


@pytest.mark.parametrize("station", ["scheduled", "first_tokens", "grant"])
@pytest.mark.parametrize("error", [HandoffFailed("lost"), Unavailable("stopping"), WorkerFailed("broken")])
async def test_a_leg_that_fails_before_the_first_token_is_tried_elsewhere(
    station: str, error: BatonError
) -> None:
    fleet = FleetOfTest()
    bad, good = Script(station, error), Script()
    async with (
        fleet.scripted_worker("a-bad-p", Role.PREFILL, bad),
        fleet.scripted_worker("a-bad-d", Role.DECODE, bad),
        fleet.scripted_worker("good-p", Role.PREFILL, good),
        fleet.scripted_worker("good-d", Role.DECODE, good),
        routed(fleet) as router,
    ):
        await until(lambda: all(t.peer.is_connected for t in router.workers._tracked.values()))
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
    fleet = FleetOfTest()
    dying, full, good = Script("attach", WorkerFailed("died")), Script("grant"), Script()
    async with (
        fleet.scripted_worker("a-dying-p", Role.PREFILL, dying),
        fleet.scripted_worker("a-full-d", Role.DECODE, full),
        fleet.scripted_worker("good-p", Role.PREFILL, good),
        fleet.scripted_worker("good-d", Role.DECODE, good),
        routed(fleet) as router,
    ):
        await until(lambda: all(t.peer.is_connected for t in router.workers._tracked.values()))
        async with asyncio.timeout(WAIT_S):
            assert await router.collect(request(prompt_ids(9))) == [[0, 1, 2]]
        assert router.transitions.count("retry") == 1
        await _assert_workers_were_told(full, has_prefill=False)


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
    fleet = FleetOfTest()
    bad, good = Script(station, error), Script()
    async with (
        fleet.scripted_worker("a-bad-p", Role.PREFILL, bad),
        fleet.scripted_worker("a-bad-d", Role.DECODE, bad),
        fleet.scripted_worker("good-p", Role.PREFILL, good),
        fleet.scripted_worker("good-d", Role.DECODE, good),
        routed(fleet) as router,
    ):
        await until(lambda: all(t.peer.is_connected for t in router.workers._tracked.values()))
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


@pytest.mark.parametrize("station", ["scheduled", "grant"])
async def test_a_prompt_whose_turn_does_not_come_is_a_queue_timeout(station: str) -> None:
    async with scripted(Script(station), FlowLimits(queue_timeout_s=0.2)) as router:
        with pytest.raises(QueueTimeout):
            await router.collect(request(prompt_ids(9)))
        assert router.events[-1].attributes["code"] == "queue_timeout"


@pytest.mark.parametrize("station", STATIONS)
async def test_a_passed_deadline_ends_the_request_at_every_station(station: str) -> None:
    script = Script(station)
    async with scripted(script) as router:
        with pytest.raises(DeadlineExceeded):
            await router.collect(request(prompt_ids(9), deadline_s=0.5))
        assert router.events[-1].attributes["code"] == "deadline_exceeded"
        await _assert_workers_were_told(script)


@pytest.mark.parametrize("station", STATIONS)
async def test_cancellation_at_every_station_tells_both_workers(station: str) -> None:
    script = Script(station)
    async with scripted(script) as router:
        task = asyncio.create_task(router.collect(request(prompt_ids(9))))
        async with asyncio.timeout(WAIT_S):
            await script.has_halted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _assert_workers_were_told(script)
        assert router.transitions[-1] == "cancel"


async def _assert_workers_were_told(script: Script, has_prefill: bool = True) -> None:
    async with asyncio.timeout(WAIT_S):
        if has_prefill:
            await script.has_prefill_ended.wait()
        for request_id in script.reserved:
            assert await script.released.get() == request_id


async def test_without_a_decode_worker_a_request_is_refused_by_name() -> None:
    router = Router(FleetOfTest(), FlowLimits(rejoin_timeout_s=0.0))
    with pytest.raises(Unavailable, match="no decode worker"):
        await router.collect(request(prompt_ids(9)))
    assert router.transitions == ["refuse"]


async def test_a_worker_that_the_registry_forgets_keeps_its_requests_and_comes_back_as_it_was() -> None:
    fleet = FleetOfTest()
    script = Script("decoding")
    async with (
        fleet.scripted_worker("p0", Role.PREFILL, script),
        fleet.scripted_worker("d0", Role.DECODE, script),
        routed(fleet) as router,
    ):
        task = asyncio.create_task(router.collect(request(prompt_ids(9))))
        async with asyncio.timeout(WAIT_S):
            await script.has_halted.wait()
        peer = router.workers._tracked["d0"].peer
        router.workers.update(Fleet())
        assert router.workers.members == []
        assert not router.workers.can_serve()
        await asyncio.sleep(0)
        assert not task.done()
        router.workers.update(fleet.snapshot)
        assert router.workers.can_serve()
        assert router.workers._tracked["d0"].peer is peer
        router.workers.update(Fleet())
        task.cancel()
        await asyncio.wait([task])
        assert not router.workers._tracked, "nothing runs there any more"


@pytest.mark.parametrize("station", STATIONS)
async def test_a_restarted_worker_fails_the_requests_of_its_predecessor_by_name(station: str) -> None:
    fleet = FleetOfTest()
    script = Script(station)
    async with (
        fleet.scripted_worker("p0", Role.PREFILL, script),
        fleet.scripted_worker("d0", Role.DECODE, script),
        routed(fleet, FlowLimits(attempts=1)) as router,
    ):
        task = asyncio.create_task(router.collect(request(prompt_ids(9))))
        async with asyncio.timeout(WAIT_S):
            await script.has_halted.wait()
            for member in list(fleet.members.values()):
                port = int(member.worker.address.rpartition(":")[2])
                fleet.add(member.worker.worker_id, member.worker.role, port)
            router.workers.update(fleet.snapshot)
            with pytest.raises((WorkerFailed, Unavailable)):
                await task
        assert router.events[-1].transition is Transition.FAIL
