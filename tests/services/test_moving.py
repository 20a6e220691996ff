"""A sequence that moves to another decode worker while it goes on, over whole workers and real hand-offs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from mini_fleet import FleetOfTest, is_in_use, until
from model_folders import prompt_ids
from routed_fleet import Router, routed
from stepped_pair import GREEDY, Pair, request, undisturbed

from baton.decode.handover import Handover
from baton.engine.engine import Engine
from baton.errors import BatonError, HandoffFailed, InvalidRequest
from baton.fleet import Role, WorkerState
from baton.lifecycle import Transition
from baton.request import SamplingParams

MakePair = Callable[..., Pair]
LONG = replace(GREEDY, max_tokens=150)
SAMPLED = replace(LONG, temperature=1.0, seed=11, logprobs=1)


def drain(fleet: FleetOfTest, router: Router, *leaving: str) -> None:
    """These, and nobody else."""
    for worker_id, member in fleet.members.items():
        state = WorkerState.DRAINING if worker_id in leaving else WorkerState.READY
        fleet.members[worker_id] = replace(member, state=state)
    router.workers.update(fleet.snapshot)


@pytest.mark.parametrize("sampling", [LONG, SAMPLED])
@pytest.mark.parametrize("choices", [1, 2])
async def test_streams_of_a_draining_worker_go_on_at_another_with_the_same_tokens(
    engine_of: Callable[[str, int], Engine], sampling: SamplingParams, choices: int
) -> None:
    fleet, engines = FleetOfTest(), [engine_of(name, 64) for name in ("prefill", "decode", "target")]
    asked = request(prompt_ids(21), sampling, n=choices)
    async with (
        fleet.whole_worker("p0", Role.PREFILL, engines[0]),
        fleet.whole_worker("d0", Role.DECODE, engines[1]),
        routed(fleet) as router,
    ):
        stream = asyncio.create_task(router.collect(asked))
        await until(lambda: "hand_off" in router.transitions)
        async with fleet.whole_worker("d1", Role.DECODE, engines[2]):
            router.workers.update(fleet.snapshot)
            await until(lambda: router.workers.has_ready("d1", Role.DECODE))
            drain(fleet, router, "d0")
            tokens = await stream
            await until(lambda: not any(is_in_use(engine) for engine in engines))
            assert router.transitions.count("migrate" if choices == 1 else "resume") == choices
    assert tokens == undisturbed(engine_of("oracle", 64), asked)
    for engine in engines:
        engine.blocks.clear_cache()


async def test_a_stream_that_is_lost_where_it_has_moved_to_avoids_that_worker_and_no_other(
    engine_of: Callable[[str, int], Engine],
) -> None:
    fleet, engines = FleetOfTest(), [engine_of(name, 64) for name in ("prefill", "decode", "target", "other")]
    asked = request(prompt_ids(21), LONG)
    async with (
        fleet.whole_worker("p0", Role.PREFILL, engines[0]),
        fleet.whole_worker("d0", Role.DECODE, engines[1]),
        fleet.whole_worker("d1", Role.DECODE, engines[2]),
        fleet.whole_worker("d2", Role.DECODE, engines[3]),
        routed(fleet) as router,
    ):
        drain(fleet, router, "d1", "d2")
        stream = asyncio.create_task(router.collect(asked))
        await until(lambda: "hand_off" in router.transitions)
        drain(fleet, router, "d0", "d2")
        await until(lambda: "migrate" in router.transitions)
        drain(fleet, router, "d0")
        router.workers._tracked["d1"].peer.give_up("it hangs")
        tokens = await stream
        await until(lambda: not any(is_in_use(engine) for engine in engines))
        [resumed] = [event for event in router.events if event.transition is Transition.RESUME]
        assert (resumed.attributes["prefill"], resumed.attributes["decode"]) == ("p0", "d2")
    assert tokens == undisturbed(engine_of("oracle", 64), asked)
    for engine in engines:
        engine.blocks.clear_cache()


async def test_a_stream_stays_where_it_is_while_there_is_nobody_to_move_to(
    engine_of: Callable[[str, int], Engine],
) -> None:
    fleet, engines = FleetOfTest(), [engine_of(name, 64) for name in ("prefill", "decode")]
    asked = request(prompt_ids(21), LONG)
    async with (
        fleet.whole_worker("p0", Role.PREFILL, engines[0]),
        fleet.whole_worker("d0", Role.DECODE, engines[1]),
        routed(fleet) as router,
    ):
        stream = asyncio.create_task(router.collect(asked))
        await until(lambda: "hand_off" in router.transitions)
        drain(fleet, router, "d0")
        tokens = await stream
        assert router.transitions == ["place", "schedule", "first_tokens", "hand_off", "finish"]
    assert tokens == undisturbed(engine_of("oracle", 64), asked)
    for engine in engines:
        engine.blocks.clear_cache()


def test_a_sequence_that_ends_while_it_is_handed_over_leaves_no_block_held(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(9), LONG)
    settled: list[BatonError | None] = []
    pair.submit(ride)
    pair.run_until(lambda: len(ride.outputs[0]) > 20, [ride])
    block_ids = pair.prefill_engine.blocks.allocate(4)
    _, ticket = pair.prefill_agent.expect(range(4), block_ids, 5.0, lambda _: None)
    begin(pair, ride.request.request_id, 16, ticket, settled)
    pair.release(ride)
    pair.run_until(lambda: bool(settled))
    assert isinstance(settled[0], HandoffFailed)
    assert pair.decode_engine.blocks.usage().used == 0
    pair.prefill_engine.blocks.release(block_ids)


@pytest.mark.parametrize("tokens", [15, 400])
def test_a_hand_over_of_tokens_that_are_not_there_is_refused_and_the_sequence_goes_on(
    make_pair: MakePair, oracle: Engine, tokens: int
) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(9), LONG)
    settled: list[BatonError | None] = []
    pair.submit(ride)
    pair.run_until(lambda: len(ride.outputs[0]) > 10, [ride])
    _, ticket = pair.prefill_agent.expect([], [], 5.0, lambda _: None)
    begin(pair, ride.request.request_id, tokens, ticket, settled)
    pair.run_until(lambda: ride.has_ended and pair.is_at_baseline, [ride])
    assert isinstance(settled[0], InvalidRequest)
    assert ride.tokens == undisturbed(oracle, ride.request)


def begin(pair: Pair, request_id: str, tokens: int, ticket: bytes, settled: list[BatonError | None]) -> None:
    handover = Handover(request_id, 0, tokens, settled.append)
    handover.session = pair.decode_agent.open(
        ticket, lambda result: pair.post(lambda: pair.decode.handovers.ended(handover, result))
    )
    pair.decode.handovers.begin(handover)
