"""Every way a request can end early, at every station: its blocks come back and its listeners hear of it once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from model_folders import prompt_ids
from stepped_pair import BLOCK_SIZE, Pair, Ride, undisturbed

from baton.decode.limits import DecodeLimits
from baton.decode.work import Grant
from baton.engine.engine import Engine
from baton.engine.sampler import NonFiniteLogits
from baton.errors import BatonError, Cancelled, DeadlineExceeded, HandoffFailed, InvalidRequest
from baton.kvtransfer.loopback import Faults, LoopbackTransport
from baton.kvtransfer.messages import Message, Push
from baton.prefill.scheduler import PrefillLimits
from baton.request import Token, TokenOutput

MakePair = Callable[..., Pair]
End = Callable[[Pair, Ride], None]
PROMPT = prompt_ids(26)


def submitted(pair: Pair, ride: Ride) -> None:
    pair.submit(ride)


def half_computed(pair: Pair, ride: Ride) -> None:
    submitted(pair, ride)
    pair.prefill.step()


def asking(pair: Pair, ride: Ride) -> None:
    half_computed(pair, ride)
    pair.ask(ride)


def reserved(pair: Pair, ride: Ride) -> None:
    asking(pair, ride)
    pair.decode.step()


def pushing(pair: Pair, ride: Ride) -> None:
    reserved(pair, ride)
    pair.attach(ride)


def computed(pair: Pair, ride: Ride) -> None:
    pushing(pair, ride)
    while ride.first_outputs is None:
        pair.prefill.step()


def started(pair: Pair, ride: Ride) -> None:
    computed(pair, ride)
    pair.start(ride)


def decoding(pair: Pair, ride: Ride) -> None:
    started(pair, ride)
    pair.run_until(lambda: len(ride.outputs[0]) > 1)


STATIONS = [submitted, half_computed, asking, reserved, pushing, computed, started, decoding]


def release(pair: Pair, ride: Ride) -> None:
    pair.release(ride)


def lose_the_router(pair: Pair, ride: Ride) -> None:
    ride.is_released = True
    pair.prefill.cancel(ride.prompt)
    pair.decode.release_router("router")


def give_up_the_grant(pair: Pair, ride: Ride) -> None:
    ride.is_released = True
    pair.prefill.cancel(ride.prompt)
    pair.decode.abandon(ride.work)


def pass_the_deadline(pair: Pair, ride: Ride) -> None:
    ride.prompt.arrived_at_s -= ride.request.deadline_s
    ride.work.arrived_at_s -= ride.request.deadline_s


def stop_the_workers(pair: Pair, ride: Ride) -> None:
    pair.prefill.close()
    pair.decode.close()


@pytest.mark.parametrize(
    "end", [release, lose_the_router, give_up_the_grant, pass_the_deadline, stop_the_workers]
)
@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.parametrize("choices", [1, 3])
def test_an_early_end_returns_every_block_at_every_station(
    make_pair: MakePair, oracle: Engine, station: End, end: End, choices: int
) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=10))
    ride = pair.ride(PROMPT, n=choices)
    station(pair, ride)
    end(pair, ride)
    pair.run_until(lambda: pair.is_at_baseline)
    for heard in (ride.prefill_failures, ride.grants, ride.decode_failures):
        assert len(heard) <= 1
    follower = pair.ride(PROMPT)
    pair.finish(follower)
    assert follower.tokens == undisturbed(oracle, follower.request)


@pytest.mark.parametrize("station", STATIONS)
def test_a_passed_deadline_is_reported_by_name(make_pair: MakePair, station: End) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=10))
    ride = pair.ride(PROMPT)
    station(pair, ride)
    pass_the_deadline(pair, ride)
    pair.run_until(lambda: bool(ride.failures) and pair.is_at_baseline)
    assert {type(error) for error in ride.failures} <= {DeadlineExceeded, HandoffFailed}


def test_a_request_of_another_router_goes_on_when_one_is_lost(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair()
    lost, kept = pair.ride(PROMPT), pair.ride(PROMPT, router_id="another")
    for ride in (lost, kept):
        decoding(pair, ride)
    lose_the_router(pair, lost)
    pair.run_until(lambda: kept.has_ended and pair.is_at_baseline, [kept])
    assert kept.tokens == undisturbed(oracle, kept.request)


def test_lost_blocks_fail_the_hand_off_on_both_sides(make_pair: MakePair) -> None:
    pair = make_pair(decode=DecodeLimits(handoff_timeout_s=0.3))

    def is_push(message: Message) -> bool:
        return isinstance(message, Push)

    LoopbackTransport.at(pair.decode_agent.endpoints[0]).faults = Faults(drop=is_push)
    ride = pair.ride(PROMPT)
    started(pair, ride)
    pair.run_until(lambda: pair.is_at_baseline)
    assert [type(error) for error in ride.prefill_failures] == [HandoffFailed]
    assert [type(error) for error in ride.decode_failures] == [HandoffFailed]


def test_a_duplicate_request_id_is_refused_without_harm_to_the_first(
    make_pair: MakePair, oracle: Engine
) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=10))
    first = pair.ride(PROMPT)
    half_computed(pair, first)
    pair.ask(first)
    second = Ride(pair, first.request, "router", is_local=False)
    pair.prefill.submit(second.prompt)
    pair.decode.submit(second.work)
    assert [type(error) for error in second.failures] == [InvalidRequest, InvalidRequest]
    pair.prefill.cancel(second.prompt)
    pair.decode.abandon(second.work)
    pair.run_until(lambda: first.has_ended and pair.is_at_baseline, [first])
    assert first.tokens == undisturbed(oracle, first.request)


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [TokenOutput(2, Token(0, 5))],
        [TokenOutput(0, Token(0, 5)), TokenOutput(0, Token(0, 6))],
        [TokenOutput(0, Token(0, 1 << 20))],
    ],
    ids=["no choice", "an unknown choice", "a choice twice", "a token beyond the vocabulary"],
)
def test_a_start_that_cannot_be_is_refused_and_costs_nobody_else_anything(
    make_pair: MakePair, outputs: list[TokenOutput]
) -> None:
    pair = make_pair()
    ride, other = pair.ride(PROMPT, n=2), pair.ride(PROMPT)
    reserved(pair, ride)
    pair.decode.start(ride.request.request_id, outputs)
    assert [type(error) for error in ride.decode_failures] == [InvalidRequest]
    pair.prefill.cancel(ride.prompt)
    pair.finish(other)
    assert not other.failures


def test_a_token_beyond_the_vocabulary_is_refused(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride([1, 2, 1 << 20])
    pair.prefill.submit(ride.prompt)
    pair.decode.submit(ride.work)
    assert [(type(error), error.field) for error in ride.failures] == [(InvalidRequest, "prompt")] * 2


def test_releasing_every_choice_before_the_blocks_are_in_ends_the_request(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride(PROMPT, n=2)
    reserved(pair, ride)
    while ride.first_outputs is None:
        pair.prefill.step()
    pair.start(ride)
    pair.decode.release(ride.request.request_id, [0])
    pair.decode.release(ride.request.request_id, [1])
    pair.prefill.cancel(ride.prompt)
    pair.run_until(lambda: pair.is_at_baseline)


def test_a_released_choice_stops_and_the_others_go_on(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair()
    ride = pair.ride(PROMPT, n=3)
    decoding(pair, ride)
    pair.decode.release(ride.request.request_id, [0, 2])
    given = len(ride.outputs[0])
    pair.run_until(lambda: pair.is_at_baseline)
    assert len(ride.outputs[0]) == len(ride.outputs[2]) == given
    assert ride.tokens[1] == undisturbed(oracle, ride.request)[1]


def test_a_grant_that_nobody_waits_for_any_more_is_not_made(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride(PROMPT)
    pair.ask(ride)
    pair.decode.abandon(ride.work)
    pair.decode.step()
    assert [type(outcome) for outcome in ride.grants] == [Cancelled]


def poison(engine: Engine, block_id: int) -> None:
    engine.pool.kv[block_id] = torch.nan


def test_a_poisoned_block_fails_only_the_request_that_reads_it(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair(decode_blocks=16)
    victim, neighbour = (pair.ride(prompt_ids(9, seed=seed), is_local=True) for seed in range(2))
    for ride in (victim, neighbour):
        pair.submit(ride)
    pair.step()
    poison(pair.decode_engine, victim.work.primary.block_ids[0])
    pair.run_until(lambda: victim.has_ended and neighbour.has_ended)
    assert [type(error) for error in victim.decode_failures] == [NonFiniteLogits]
    assert neighbour.tokens == undisturbed(oracle, neighbour.request)
    again = pair.ride(victim.request.token_ids, is_local=True)
    pair.finish(again)
    assert again.tokens == undisturbed(oracle, again.request), "the poisoned block is not reused as a prefix"
    everywhere = pair.ride(prompt_ids(14 * BLOCK_SIZE), is_local=True)
    pair.finish(everywhere)
    assert everywhere.tokens == undisturbed(oracle, everywhere.request), (
        "nor does its memory harm its next holder"
    )


def test_a_poisoned_prompt_fails_on_the_prefill_worker_and_its_neighbour_does_not(
    make_pair: MakePair, oracle: Engine
) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=24))
    victim, neighbour = pair.ride(PROMPT), pair.ride(prompt_ids(9, seed=4))
    pair.submit(victim)
    pair.prefill.step()
    pair.submit(neighbour)
    poison(pair.prefill_engine, victim.prompt.sequence.block_ids[0])
    pair.run_until(lambda: bool(victim.prefill_failures) and neighbour.has_ended, [neighbour])
    assert [type(error) for error in victim.prefill_failures] == [NonFiniteLogits]
    assert neighbour.tokens == undisturbed(oracle, neighbour.request)
    again = pair.ride(PROMPT)
    pair.finish(again)
    assert again.tokens == undisturbed(oracle, again.request)


def test_an_agent_that_takes_no_more_transfers_fails_the_request_by_name(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride(PROMPT)
    pair.decode_agent.close()
    pair.ask(ride)
    pair.decode.step()
    outcome: Grant | BatonError = ride.grants[0]
    assert isinstance(outcome, HandoffFailed)
