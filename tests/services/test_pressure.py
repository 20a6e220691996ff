"""More work than a pool holds: who waits, who is preempted, who is refused, and that nobody can tell after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from model_folders import prompt_ids
from stepped_pair import BLOCK_SIZE, GREEDY, Pair, Ride, undisturbed

from baton.decode.limits import DecodeLimits
from baton.engine.engine import Engine
from baton.errors import DeadlineExceeded, Overloaded
from baton.prefill.scheduler import PrefillLimits

MakePair = Callable[..., Pair]
LONG = replace(GREEDY, max_tokens=40)


def locals_of(pair: Pair, count: int) -> list[Ride]:
    return [pair.ride(prompt_ids(8, seed=seed), LONG, is_local=True) for seed in range(count)]


def test_preempted_requests_give_the_tokens_of_undisturbed_runs(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair(decode_blocks=16)
    rides = [
        pair.ride(prompt_ids(9, seed=seed), replace(LONG, temperature=0.8, seed=seed)) for seed in range(4)
    ]
    pair.finish(*rides)
    assert pair.decode.load().preemptions > 0
    assert [ride.tokens for ride in rides] == [undisturbed(oracle, ride.request) for ride in rides]


def test_choices_without_room_are_computed_anew(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair(decode_blocks=14)
    ride = pair.ride(prompt_ids(18), replace(LONG, max_tokens=30, temperature=1.0, seed=5), n=4)
    pair.finish(ride)
    assert pair.decode.load().preemptions > 0
    assert ride.tokens == undisturbed(oracle, ride.request)


def test_the_youngest_is_preempted_and_the_oldest_gets_on_in_every_step(make_pair: MakePair) -> None:
    pair = make_pair(decode_blocks=16)
    rides = locals_of(pair, 3)
    for ride in rides:
        pair.submit(ride)
    while not rides[0].is_finished:
        before = [len(ride.outputs[0]) for ride in rides]
        pair.step()
        after = [len(ride.outputs[0]) for ride in rides]
        assert after[0] == before[0] + 1
        assert after[0] >= after[1] >= after[2]
    assert pair.decode.load().preemptions > 0
    pair.run_until(lambda: all(ride.is_finished for ride in rides))


def test_a_prompt_as_large_as_the_pool_is_served(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair(prefill_blocks=16, decode_blocks=16)
    ride = pair.ride(prompt_ids(16 * BLOCK_SIZE - 1))
    pair.finish(ride)
    assert [len(tokens) for tokens in ride.tokens] == [1]
    assert not ride.failures


def test_memory_is_granted_in_order_of_arrival_and_a_large_request_is_not_overtaken(
    make_pair: MakePair,
) -> None:
    pair = make_pair(decode_blocks=16)
    first = pair.ride(prompt_ids(10 * BLOCK_SIZE))
    large = pair.ride(prompt_ids(12 * BLOCK_SIZE, seed=1))
    small = pair.ride(prompt_ids(BLOCK_SIZE, seed=2))
    for ride in (first, large, small):
        pair.ask(ride)
    pair.decode.step()
    assert [len(ride.grants) for ride in (first, large, small)] == [1, 0, 0]
    pair.release(first)
    pair.decode.step()
    assert [len(ride.grants) for ride in (first, large, small)] == [1, 1, 1]
    for ride in (large, small):
        pair.release(ride)


def test_a_request_that_waits_for_memory_in_vain_gets_its_deadline(make_pair: MakePair) -> None:
    pair = make_pair(decode_blocks=16)
    holder, waiter = pair.ride(prompt_ids(60)), pair.ride(prompt_ids(50, seed=1))
    pair.ask(holder)
    pair.ask(waiter)
    pair.decode.step()
    waiter.work.arrived_at_s -= waiter.request.deadline_s
    pair.decode.step()
    assert [type(outcome) for outcome in waiter.grants] == [DeadlineExceeded]
    pair.release(holder)


def test_newcomers_wait_behind_those_that_were_preempted(make_pair: MakePair) -> None:
    pair = make_pair(decode_blocks=16)
    rides = locals_of(pair, 3)
    for ride in rides:
        pair.submit(ride)
    pair.run_until(lambda: pair.decode.load().preemptions > 0)
    newcomer = pair.ride(prompt_ids(4, seed=9))
    pair.ask(newcomer)
    pair.step()
    assert not newcomer.grants
    pair.run_until(lambda: bool(newcomer.grants))
    pair.release(newcomer)
    pair.run_until(lambda: all(ride.is_finished for ride in rides))


def test_full_queues_refuse_by_name(make_pair: MakePair) -> None:
    pair = make_pair(prefill=PrefillLimits(max_waiting=2), decode=DecodeLimits(max_asking=2))
    rides = [pair.ride(prompt_ids(5, seed=seed)) for seed in range(3)]
    for ride in rides:
        pair.submit(ride)
        pair.ask(ride)
    assert [type(error) for error in rides[2].failures] == [Overloaded, Overloaded]
    assert not rides[0].failures + rides[1].failures
    for ride in rides:
        pair.release(ride)


def test_prompts_are_computed_by_priority_then_arrival(make_pair: MakePair) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=8))
    rides = [
        pair.ride(prompt_ids(8, seed=seed), priority=priority) for seed, priority in enumerate((1, 0, 1, 0))
    ]
    order: list[int] = []
    for ride in rides:
        pair.submit(ride)
    while len(order) < len(rides):
        pair.prefill.step()
        order += [number for number, ride in enumerate(rides) if ride.scheduled and number not in order]
    assert order == [1, 3, 0, 2]
    for ride in rides:
        pair.release(ride)


def test_a_step_computes_no_more_of_a_prompt_than_its_time_allows(make_pair: MakePair) -> None:
    """By the speed that is assumed of an unknown worker, 1000 tokens a second."""
    pair = make_pair(prefill=PrefillLimits(chunk_s=0.020))
    ride = pair.ride(prompt_ids(80))
    pair.submit(ride)
    computed_tokens = []
    while not ride.outputs[0]:
        before = ride.prompt.computed_tokens
        pair.prefill.step()
        computed_tokens.append(ride.prompt.computed_tokens - before)
    assert max(computed_tokens) == 20
    pair.release(ride)


def test_a_long_prompt_computed_here_holds_up_other_tokens_by_one_chunk_at_most(make_pair: MakePair) -> None:
    pair = make_pair(decode=DecodeLimits(prefill_chunk_tokens=8))
    short = pair.ride(prompt_ids(4), LONG, is_local=True)
    pair.submit(short)
    pair.step()
    long = pair.ride(prompt_ids(80, seed=1), is_local=True)
    pair.submit(long)
    while not long.outputs[0]:
        before = len(short.outputs[0])
        pair.step()
        assert len(short.outputs[0]) == before + 1
    assert len(short.outputs[0]) >= 10, "ten chunks of eight tokens"
    pair.run_until(lambda: short.is_finished and long.is_finished)


def test_a_preempted_sequence_that_shares_its_prefix_needs_room_only_for_the_rest(
    make_pair: MakePair, oracle: Engine
) -> None:
    pair = make_pair(decode_blocks=16)
    prompt = prompt_ids(10 * BLOCK_SIZE)
    first = pair.ride([*prompt, 1], replace(GREEDY, max_tokens=12), is_local=True)
    pair.submit(first)
    pair.run_until(lambda: bool(first.outputs[0]))
    second = pair.ride([*prompt, 2], is_local=True)
    pair.submit(second)
    pair.step()
    assert second.outputs[0], "it joins at once, though the whole prompt would not fit a second time"
    pair.run_until(lambda: first.is_finished and second.is_finished)
    assert second.tokens == undisturbed(oracle, second.request)
