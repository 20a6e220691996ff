"""One request's way through both schedulers, over a real hand-off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from model_folders import prompt_ids
from stepped_pair import BLOCK_SIZE, GREEDY, SECRET, Pair, undisturbed

from baton.engine.engine import Engine
from baton.kvtransfer.base import KVMemory
from baton.kvtransfer.block_array import BlockArray
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.ticket import open_sealed
from baton.prefill.scheduler import PrefillLimits
from baton.request import FinishReason

MakePair = Callable[..., Pair]


@pytest.mark.parametrize("tokens", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 50])
def test_a_handed_off_prompt_gives_the_tokens_of_an_undisturbed_run(
    make_pair: MakePair, oracle: Engine, tokens: int
) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(tokens))
    pair.finish(ride)
    assert ride.tokens == undisturbed(oracle, ride.request)
    assert not ride.failures
    [report] = ride.handed_off
    assert (report.blocks, report.scheme) == (-(-tokens // BLOCK_SIZE), "loopback")


def test_both_workers_sum_up_their_own_stages_of_every_hand_off(make_pair: MakePair) -> None:
    pair = make_pair()
    rides = [pair.ride(prompt_ids(20, seed=seed)) for seed in range(3)]
    pair.finish(*rides)
    pair.step()
    reports = [ride.handed_off[0] for ride in rides]
    sent, received = pair.prefill.load().handoffs, pair.decode.load().handoffs
    assert sent.handoffs == received.handoffs == 3
    assert sent.last_byte_s == pytest.approx(sum(report.last_byte_s for report in reports))
    assert sent.exposed_s == pytest.approx(sum(r.acknowledged_s - r.compute_s for r in reports))
    assert received.reserve_s == pytest.approx(sum(ride.grant.waited_s for ride in rides if ride.grant))


def test_a_prompt_that_has_queued_elsewhere_goes_before_its_equals_that_came_since(
    make_pair: MakePair,
) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=8))
    rides = [pair.ride(prompt_ids(24, seed=seed), deadline_s=30.0) for seed in range(3)]
    rides[2].prompt.waited_s = 60.0
    pair.finish(*rides)
    assert sorted(rides, key=lambda ride: ride.prompt.scheduled_at_s) == [rides[2], rides[0], rides[1]]
    assert not any(ride.failures for ride in rides), "a deadline counts from the arrival here"


def test_full_blocks_leave_while_later_chunks_are_computed_and_the_rest_at_the_end(
    make_pair: MakePair,
) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=10))
    ride = pair.ride(prompt_ids(26))
    pair.submit(ride)
    pair.prefill.step()
    pair.ask(ride)
    pair.decode.step()
    pair.attach(ride)
    assert ride.prompt.pushed_blocks == 10 // BLOCK_SIZE, "what was computed before the ticket leaves with it"
    pair.prefill.step()
    assert ride.prompt.pushed_blocks == 20 // BLOCK_SIZE
    assert not ride.outputs[0]
    pair.prefill.step()
    assert ride.prompt.pushed_blocks == 7, "the partial last block leaves with the first token"
    assert len(ride.outputs[0]) == 1
    pair.run_until(lambda: ride.has_ended and pair.is_at_baseline, [ride])


def test_blocks_that_decode_caches_do_not_cross_again(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair()
    prefix = prompt_ids(24)
    first, second = pair.ride([*prefix, 1, 2]), pair.ride([*prefix, 3, 4, 5])
    pair.finish(first)
    sent_before = pair.prefill_agent.stats().blocks_sent
    pair.finish(second)
    assert second.grant is not None
    assert second.grant.cached_tokens == 24
    assert second.grant.missing_blocks == 1
    assert pair.prefill_agent.stats().blocks_sent - sent_before == 1
    assert second.tokens == undisturbed(oracle, second.request)


def test_a_prompt_that_decode_caches_whole_needs_no_blocks_at_all(make_pair: MakePair) -> None:
    pair = make_pair()
    prompt = prompt_ids(6 * BLOCK_SIZE)
    first, again = pair.ride(prompt), pair.ride(prompt)
    pair.finish(first)
    pair.finish(again)
    assert [report.blocks for report in again.handed_off] == [0]
    assert again.tokens == first.tokens


def test_a_push_for_a_ticket_that_wants_nothing_does_nothing(make_pair: MakePair) -> None:
    pair = make_pair()
    _, sealed = pair.decode_agent.expect([], [], 1.0, lambda _: None)
    blocks = BlockArray.of(KVMemory(pair.prefill_engine.pool.bytes_view))
    session = Outgoing(open_sealed(sealed, SECRET), blocks, lambda _: None, lambda _: None)
    session.push([0, 1], [4, 5])
    assert session.is_open, "it ends a moment later, on the transport's thread"


def test_choices_share_full_blocks_and_copy_the_partial_one(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(2 * BLOCK_SIZE + 2), n=3)
    pair.submit(ride)
    pair.run_until(lambda: any(choice.output_tokens > 1 for choice in ride.work.choices), [ride])
    tables = [choice.block_ids for choice in ride.work.choices]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert len({table[2] for table in tables}) == 3
    pair.run_until(lambda: ride.has_ended and pair.is_at_baseline, [ride])
    assert ride.tokens[0] == ride.tokens[1] == ride.tokens[2], "greedy choices are equal"


def test_sampled_choices_are_those_of_undisturbed_runs(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(13), replace(GREEDY, temperature=1.0, seed=7), n=4)
    pair.finish(ride)
    assert ride.tokens == undisturbed(oracle, ride.request)
    assert len({tuple(tokens) for tokens in ride.tokens}) > 1


def test_a_request_that_ends_with_its_first_token_never_starts_to_decode(make_pair: MakePair) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(9), replace(GREEDY, max_tokens=1), n=2)
    pair.finish(ride)
    assert [[output.finish_reason for output in outputs] for outputs in ride.outputs] == [
        [FinishReason.LENGTH],
        [FinishReason.LENGTH],
    ]
    assert not ride.is_started


def test_one_choice_ends_with_its_first_token_and_the_others_go_on(
    make_pair: MakePair, oracle: Engine
) -> None:
    pair = make_pair()
    sampled = replace(GREEDY, temperature=1.5, seed=11)
    free = undisturbed(oracle, pair.ride(prompt_ids(9), sampled, n=3).request)
    stop = free[0][0]
    ride = pair.ride(prompt_ids(9), replace(sampled, stop_token_ids=(stop,)), n=3)
    pair.finish(ride)
    assert ride.tokens == undisturbed(oracle, ride.request)
    assert [len(tokens) for tokens in ride.tokens].count(1) < 3
    assert ride.outputs[0][0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("choices", [1, 3])
def test_a_local_prefill_gives_the_same_tokens(make_pair: MakePair, oracle: Engine, choices: int) -> None:
    pair = make_pair()
    ride = pair.ride(prompt_ids(30), replace(GREEDY, temperature=1.0, seed=3), is_local=True, n=choices)
    pair.finish(ride)
    assert ride.tokens == undisturbed(oracle, ride.request)
    assert pair.prefill_agent.stats().blocks_sent == 0


def test_the_whole_life_of_many_requests_at_once(make_pair: MakePair, oracle: Engine) -> None:
    pair = make_pair(prefill=PrefillLimits(chunk_tokens=16))
    rides = [
        pair.ride(prompt_ids(3 + 5 * number, seed=number % 3), n=1 + number % 2, is_local=number % 4 == 3)
        for number in range(8)
    ]
    pair.finish(*rides)
    assert [ride.tokens for ride in rides] == [undisturbed(oracle, ride.request) for ride in rides]
