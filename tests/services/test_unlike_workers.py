"""Workers whose pools lie differently hand over to each other, and the tokens are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from model_folders import prompt_ids
from oracle import reference
from stepped_pair import Pair, make_engine

from baton.engine.engine import Engine
from baton.prefill.scheduler import PrefillLimits
from baton.request import SamplingParams

KV_BLOCKS = 64
SAMPLING = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


def run(prefill: Engine, decode: Engine, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """The tokens of each prompt, one after the other."""
    pair = Pair(prefill, decode, PrefillLimits(chunk_tokens=37))
    try:
        rides = [pair.ride(prompt, SAMPLING) for prompt in prompts]
        for ride in rides:
            pair.finish(ride)
            assert not ride.failures
        return [ride.tokens[0] for ride in rides]
    finally:
        pair.close()
        prefill.close()
        decode.close()


@pytest.mark.parametrize(("mine", "theirs"), [(16, 32), (32, 16), (16, 24)])
@pytest.mark.parametrize("variant", ["llama", "qwen3", "llama-mqa-biased"])
def test_block_sizes_that_differ_change_no_token(
    model_folder: Callable[[str], Path], variant: str, mine: int, theirs: int
) -> None:
    folder = model_folder(variant)
    expected = [reference(folder, tokens) for tokens in (1, 16, 100)]
    expected.append(reference(folder, 130, begin=expected[-1].prompt))  # both sides cache the beginning
    tokens = run(
        make_engine(folder, KV_BLOCKS, mine),
        make_engine(folder, KV_BLOCKS, theirs),
        [each.prompt for each in expected],
    )
    assert tokens == [each.token_ids[:16] for each in expected]


@pytest.mark.parametrize(("mine", "theirs"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_dtypes_that_differ_are_converted(
    model_folder: Callable[[str], Path], mine: str, theirs: str
) -> None:
    """The first token is the prefill worker's own; what follows is decoded from the converted blocks."""
    folder = model_folder("llama")
    prompt = tuple(prompt_ids(100))

    def answer(prefill: str, decode: str) -> list[int]:
        engines = [make_engine(folder, KV_BLOCKS, 16, dtype) for dtype in (prefill, decode)]
        [tokens] = run(engines[0], engines[1], [prompt])
        return tokens

    crossed, alone = answer(mine, theirs), answer(mine, mine)
    assert len(crossed) == SAMPLING.max_tokens
    assert crossed[0] == alone[0]
