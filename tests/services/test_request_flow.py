"""The router's request flow over real gRPC: whole lives, deadlines, cancellation, and what it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from mini_fleet import WAIT_S, FleetOfTest, Script, is_in_use, until
from model_folders import prompt_ids
from routed_fleet import Router, routed, scripted
from stepped_pair import GREEDY, request, undisturbed

from baton.engine.engine import Engine
from baton.errors import DeadlineExceeded, QueueTimeout, Unavailable, WorkerFailed
from baton.fleet import Fleet, Role
from baton.lifecycle import Transition
from baton.router.request_flow import FlowLimits

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
        await script.until_told()


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
        await script.until_told()
        assert router.transitions[-1] == "cancel"


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
