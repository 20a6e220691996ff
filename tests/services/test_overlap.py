"""Steps that are launched before the one in flight has landed: the tokens are those of steps one after the other,
and what a step computed in vain is dropped with the memory it took.

On a CPU a step is over when it is launched; its tokens are told one step later all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_folders import prompt_ids
from stepped_pair import BLOCK_SIZE, GREEDY, Pair, undisturbed
from stepped_pair import request as ask

from baton.decode.limits import DecodeLimits
from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.engine_config import EngineConfig
from baton.engine.sampler import NonFiniteLogits
from baton.request import FinishReason, SamplingParams

LONG = replace(GREEDY, max_tokens=24)


@pytest.fixture(scope="module", params=[16, 64])
def overlapping(model_folder: Callable[[str], Path], request: pytest.FixtureRequest) -> Iterator[Engine]:
    """With few blocks sequences are preempted, with many they are not."""
    folder, blocks = model_folder("llama"), request.param
    engine = Engine(
        EngineConfig(folder, "float32", block_size=BLOCK_SIZE, kv_blocks=blocks, threads=1, overlap=True)
    )
    yield engine
    engine.close()


@pytest.fixture
def pair(overlapping: Engine, engine_of: Callable[[str, int], Engine]) -> Iterator[Pair]:
    pair = Pair(engine_of("prefill", 64), overlapping, None, DecodeLimits(prefill_chunk_tokens=8))
    yield pair
    pair.close()


def sampled(seed: int, **fields: object) -> SamplingParams:
    return replace(LONG, temperature=0.8, seed=seed, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_local", [True, False], ids=["prompts here", "prompts handed over"])
def test_requests_that_come_and_go_get_the_tokens_of_undisturbed_runs(
    pair: Pair, oracle: Engine, is_local: bool
) -> None:
    rides = [
        pair.ride(
            prompt_ids(9 + 4 * seed, seed=seed), sampled(seed, max_tokens=6 + 5 * seed), is_local=is_local
        )
        for seed in range(4)
    ]
    pair.finish(*rides)
    assert [ride.tokens for ride in rides] == [undisturbed(oracle, ride.request) for ride in rides]


def test_choices_of_one_prompt_get_the_tokens_of_undisturbed_runs(pair: Pair, oracle: Engine) -> None:
    ride = pair.ride(prompt_ids(10), sampled(5), n=3, is_local=True)
    pair.finish(ride)
    assert ride.tokens == undisturbed(oracle, ride.request)


def test_penalties_see_every_earlier_token(pair: Pair, oracle: Engine) -> None:
    sampling = replace(LONG, repetition_penalty=1.8, frequency_penalty=0.5)
    penalised = pair.ride(prompt_ids(7), sampling, is_local=True)
    plain = pair.ride(prompt_ids(8), LONG, is_local=True)
    pair.finish(penalised, plain)
    assert [penalised.tokens, plain.tokens] == [
        undisturbed(oracle, ride.request) for ride in (penalised, plain)
    ]


def test_nothing_is_told_behind_a_stop_token(pair: Pair, oracle: Engine) -> None:
    [free] = undisturbed(oracle, pair.ride(prompt_ids(9), LONG).request)
    stop = free[7]
    sampling = replace(LONG, stop_token_ids=(stop,))
    stopping, other = (
        pair.ride(prompt_ids(9), sampling, is_local=True),
        pair.ride(prompt_ids(11), LONG, is_local=True),
    )
    pair.finish(stopping, other)
    assert stopping.tokens == [free[: free.index(stop) + 1]]
    assert stopping.outputs[0][-1].finish_reason is FinishReason.STOP
    assert other.tokens == undisturbed(oracle, other.request)


def test_no_step_is_computed_for_a_sequence_that_has_its_length(pair: Pair) -> None:
    ride = pair.ride(prompt_ids(5), replace(GREEDY, max_tokens=3), is_local=True)
    pair.submit(ride)
    pair.decode_engine.take_landed_work()
    launched = 0
    while not ride.is_finished:
        pair.step()
        launched += pair.decode_engine.take_landed_work().sequences
    assert launched == 2, "the first token comes of the prompt"


def test_blocks_of_a_released_request_are_kept_until_the_step_that_writes_them_has_landed(pair: Pair) -> None:
    ride = pair.ride(prompt_ids(5), LONG, is_local=True)
    pair.submit(ride)
    for _ in range(4):
        pair.step()
    assert pair.decode_engine.in_flight == 1
    pair.release(ride)
    assert pair.decode_engine.blocks.usage().used > 0
    assert pair.decode.step(), "there is a step to land"
    assert pair.decode_engine.blocks.usage().used == 0
    assert not pair.decode.step()


def test_tokens_are_told_one_step_after_their_launch(pair: Pair) -> None:
    ride = pair.ride(prompt_ids(5), LONG, is_local=True)
    pair.submit(ride)
    told = []
    for _ in range(5):
        pair.step()
        told.append(len(ride.outputs[0]))
    assert told == [0, 1, 2, 3, 4]
    pair.release(ride)


def test_logits_that_are_not_finite_end_one_request_and_the_others_go_on(pair: Pair, oracle: Engine) -> None:
    bad, good = (pair.ride(prompt_ids(6 + seed), sampled(seed), is_local=True) for seed in range(2))
    for ride in (bad, good):
        pair.submit(ride)
    pair.run_until(lambda: len(good.outputs[0]) > 3)
    pair.decode_engine.pool.kv[bad.work.primary.block_ids[0]] = torch.nan
    pair.run_until(lambda: good.is_finished)
    assert isinstance(bad.failures[0], NonFiniteLogits)
    assert good.tokens == undisturbed(oracle, good.request)
    pair.run_until(lambda: pair.is_at_baseline)


def test_a_step_that_lands_leaves_what_the_next_one_took_of_it(overlapping: Engine) -> None:
    sequence = overlapping.new_sequence(ask(prompt_ids(5)), 0)
    overlapping.grow(sequence, 12)
    overlapping.launch([Chunk(sequence, 5, (sequence,))])
    overlapping.launch([Chunk(sequence, 1, (sequence,))])
    first, second = overlapping.land(), overlapping.land()
    known = [output.token.token_id for _, output in first + second]
    assert sequence.token_ids[5:] == known
    assert sequence.computed_tokens == 6
    overlapping.free(sequence)
    overlapping.blocks.clear_cache()
