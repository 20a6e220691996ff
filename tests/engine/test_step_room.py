"""How much of prompts a step computes where its time is limited, and what stays true however tight that is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.prompt_queue import PromptQueue
from baton.engine.step_room import AUTO_PASSES, ChunkLimit
from baton.fleet import WorkerProfile

SPEEDS = WorkerProfile(5000.0, prefill_s_per_pair=1e-7, prefill_pass_s=0.004)
MOST_TOKENS = 512


@dataclass(eq=False)
class Prompt:
    remaining_tokens: int
    computed_tokens: int = 0
    priority: int = 0
    queued_at_s: float = 0.0


def limit(seconds: float | None, speeds: WorkerProfile = SPEEDS) -> ChunkLimit:
    return ChunkLimit(MOST_TOKENS, seconds, lambda: speeds)


def step(queue: PromptQueue[Prompt]) -> dict[Prompt, int]:
    chunks = dict(queue.plan(lambda _: True))
    for prompt, length in chunks.items():
        prompt.remaining_tokens -= length
        prompt.computed_tokens += length
        if not prompt.remaining_tokens:
            queue.remove(prompt)
    return chunks


@given(
    rate=st.floats(1, 1e6),
    s_per_pair=st.floats(0, 1e-3),
    seconds=st.floats(0, 100),
    context_tokens=st.integers(0, 1_000_000),
)
def test_so_many_tokens_fit_into_a_time_and_no_more(
    rate: float, s_per_pair: float, seconds: float, context_tokens: int
) -> None:
    speeds = WorkerProfile(rate, prefill_s_per_pair=s_per_pair)
    tokens = speeds.chunk_tokens(seconds, context_tokens)
    assert speeds.chunk_s(tokens, context_tokens) <= seconds * 1.000001
    assert speeds.chunk_s(tokens + 1, context_tokens) >= seconds * 0.999999


def test_chunks_of_a_long_prompt_become_shorter_as_their_context_grows() -> None:
    queue = PromptQueue[Prompt](limit(0.03))
    queue.add(prompt := Prompt(10_000))
    lengths = []
    while prompt in queue:
        seen_tokens = prompt.computed_tokens
        [length] = step(queue).values()
        assert SPEEDS.chunk_s(length, seen_tokens) <= 0.03
        lengths.append(length)
    assert lengths[0] == SPEEDS.chunk_tokens(0.03, 0) > 100
    assert lengths[-2] < lengths[0] / 4


def test_a_short_prompt_is_computed_whole_beside_a_long_one_that_has_come_far() -> None:
    queue = PromptQueue[Prompt](limit(0.03))
    queue.add(long := Prompt(5_000, computed_tokens=20_000))
    assert step(queue)[long] < 64
    queue.add(short := Prompt(128))
    assert step(queue) == {short: 128}


def test_without_a_figure_a_step_lasts_some_passes_and_is_not_limited_where_they_are_unknown() -> None:
    assert limit(None).room().seconds == pytest.approx(AUTO_PASSES * SPEEDS.prefill_pass_s)
    unknown = limit(None, WorkerProfile(5000.0, prefill_s_per_pair=1e-7)).room()
    assert unknown.fits(10_000, 100_000) == MOST_TOKENS


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=8),
    seconds=st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.1]),
)
def test_however_tight_the_limit_each_step_computes_some_tokens_and_every_prompt_ends(
    lengths: list[int], seconds: float
) -> None:
    queue = PromptQueue[Prompt](limit(seconds))
    prompts = [Prompt(tokens) for tokens in lengths]
    for prompt in prompts:
        queue.add(prompt)
    while any(prompt in queue for prompt in prompts):
        assert sum(step(queue).values()) > 0
