"""A device that has no memory for a step: fewer are computed at once, and the worker lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_folders import prompt_ids
from stepped_pair import BLOCK_SIZE, GREEDY, Pair, undisturbed

from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.engine_config import EngineConfig
from baton.engine.memory import StepOutOfMemory, exhaustion_named

MORE_THAN_THERE_IS_BYTES = 1 << 60


class NarrowEngine(Engine):
    """Its device has room for `max_rows` tokens a step."""

    max_rows = 10**6
    refusals = 0

    def launch(self, chunks: list[Chunk]) -> None:
        with exhaustion_named():
            if sum(chunk.length for chunk in chunks) > self.max_rows:
                self.refusals += 1
                torch.empty(MORE_THAN_THERE_IS_BYTES, dtype=torch.uint8)
        super().launch(chunks)


@pytest.fixture
def narrow(model_folder: Callable[[str], Path]) -> Iterator[NarrowEngine]:
    engine = NarrowEngine(
        EngineConfig(model_folder("llama"), dtype="float32", block_size=BLOCK_SIZE, kv_blocks=64, threads=1)
    )
    yield engine
    engine.close()


@pytest.fixture
def pair(narrow: NarrowEngine, engine_of: Callable[[str, int], Engine]) -> Iterator[Pair]:
    pair = Pair(engine_of("prefill", 64), narrow, None, None)
    yield pair
    pair.close()


def test_a_batch_that_does_not_fit_shrinks_and_every_request_gets_its_tokens(
    pair: Pair, narrow: NarrowEngine, oracle: Engine
) -> None:
    rides = [
        pair.ride(
            prompt_ids(5, seed=seed),
            replace(GREEDY, max_tokens=20, temperature=0.7, seed=seed),
            is_local=True,
        )
        for seed in range(8)
    ]
    for ride in rides:
        pair.submit(ride)
    pair.run_until(lambda: all(ride.outputs[0] for ride in rides))
    narrow.max_rows = 6
    pair.run_until(lambda: all(ride.is_finished for ride in rides))
    assert narrow.refusals > 0
    assert [ride.tokens for ride in rides] == [undisturbed(oracle, ride.request) for ride in rides]


def test_a_sequence_that_does_not_fit_alone_fails_and_the_next_is_served(
    pair: Pair, narrow: NarrowEngine, oracle: Engine
) -> None:
    narrow.max_rows = 4
    large = pair.ride(prompt_ids(40), is_local=True)
    pair.submit(large)
    pair.run_until(lambda: bool(large.failures))
    assert isinstance(large.failures[0], StepOutOfMemory)
    small = pair.ride(prompt_ids(4), is_local=True)
    pair.finish(small)
    assert small.tokens == undisturbed(oracle, small.request)


def test_prompts_that_do_not_fit_together_go_on_without_the_last(
    narrow: NarrowEngine, engine_of: Callable[[str, int], Engine], oracle: Engine
) -> None:
    narrow.max_rows = 20
    pair = Pair(narrow, engine_of("decode", 64), None, None)
    first, second = (pair.ride(prompt_ids(15, seed=seed)) for seed in range(2))
    for ride in (first, second):
        pair.submit(ride)
    pair.run_until(lambda: bool(first.failures or second.failures))
    failed, served = (first, second) if first.failures else (second, first)
    assert isinstance(failed.failures[0], StepOutOfMemory)
    pair.run_until(lambda: served.first_outputs is not None)
    assert [output.token.token_id for output in served.first_outputs or []] == undisturbed(
        oracle, served.request
    )[0][:1]
    pair.release(served)
    pair.close()


def test_other_errors_of_torch_are_not_taken_for_exhaustion() -> None:
    with pytest.raises(RuntimeError, match="shape"), exhaustion_named():
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(StepOutOfMemory), exhaustion_named():
        bytearray(MORE_THAN_THERE_IS_BYTES)
