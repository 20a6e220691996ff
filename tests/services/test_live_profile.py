"""What a worker's steps and hand-offs teach it about its own speed."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.step_room import AUTO_PASSES, ChunkLimit
from baton.engine.step_work import StepWork
from baton.fleet import WorkerProfile
from baton.worker.live_profile import LiveProfile
from baton.worker.term_fit import TermFit

TRUE = WorkerProfile(2000.0, 0.010, 2e9, 2e-7, 0.0005, 1e-6, prefill_pass_s=0.004, handoff_latency_s=0.002)
WRONG = WorkerProfile(9000.0, 0.002, 2e10, 0.0, 0.0, 0.0)
"""What a worker may have measured of itself in a quiet moment."""


def prompts(draw: random.Random, count: int) -> list[StepWork]:
    lengths = [draw.randint(2, 512) for _ in range(count)]
    return [StepWork(n, n * (draw.choice([0, 512]) + n / 2)) for n in lengths]


def batches(draw: random.Random, count: int) -> list[StepWork]:
    sizes = [draw.randint(1, 32) for _ in range(count)]
    return [StepWork(0, 0.0, n, n * draw.randint(20, 800)) for n in sizes]


def seconds(profile: WorkerProfile, work: StepWork) -> float:
    tokens_s = work.prompt_tokens / profile.prefill_rate
    prompts_s = tokens_s + work.prompt_pairs * profile.prefill_s_per_pair
    if work.sequences:
        return prompts_s + profile.step_s(work.sequences, work.context_tokens)
    return prompts_s + profile.prefill_pass_s


def median_error(profile: WorkerProfile, works: list[StepWork]) -> float:
    return statistics.median(abs(seconds(profile, w) / seconds(TRUE, w) - 1) for w in works)


def taught(works: list[StepWork], draw: random.Random) -> LiveProfile:
    """By durations with a jitter of a tenth, and one in twenty held up to ten times as long."""
    live = LiveProfile(WRONG)
    for work in works:
        stall = 10 if draw.random() < 0.05 else 1
        live.note_step(work, seconds(TRUE, work) * draw.uniform(0.9, 1.1) * stall)
    return live


@pytest.mark.parametrize("kind", [prompts, batches])
def test_a_wrong_start_is_corrected_by_what_steps_take(
    kind: Callable[[random.Random, int], list[StepWork]],
) -> None:
    draw = random.Random(1)
    works = kind(draw, 400)
    unseen = kind(draw, 100)
    corrected = taught(works, draw).corrected()
    assert median_error(WRONG, unseen) > 0.5
    assert median_error(corrected, unseen) < 0.15


def test_a_step_that_only_launches_teaches_nothing() -> None:
    live = LiveProfile(TRUE)
    for _ in range(100):
        live.note_step(StepWork(), 0.5)
    assert live.corrected() == LiveProfile(TRUE).corrected()


def test_prompts_beside_decode_teach_what_prompts_take() -> None:
    """As on a decode worker that computes some prompts itself, and never one alone."""
    draw = random.Random(4)
    beside = [
        StepWork(n, n * (draw.choice([0, 512]) + n / 2), of.sequences, of.context_tokens)
        for n, of in zip((draw.randint(2, 64) for _ in range(100)), batches(draw, 100), strict=True)
    ]
    alone = batches(draw, 900)
    corrected = taught(draw.sample(beside + alone, 1000), draw).corrected()
    of_true = [seconds(corrected, work) / seconds(TRUE, work) for work in beside]
    assert statistics.median(of_true) == pytest.approx(1, abs=0.15)
    unseen = [StepWork(n, n * 512) for n in (128, 256)]
    without_pass = replace(corrected, prefill_pass_s=TRUE.prefill_pass_s)
    assert median_error(without_pass, unseen) < 0.3


def test_the_tails_of_handoffs_tell_latency_and_bandwidth_of_the_network_and_within_the_host() -> None:
    draw, live = random.Random(2), LiveProfile(WRONG)
    links = {"tcp": (0.004, 1e9), "shm": (0.002, 2e9), "ucx": (0.001, 1e10)}
    for schemes in (["shm"], ["tcp", "shm"], ["ucx"]):
        for scheme in schemes * 200:
            latency_s, bytes_per_s = links[scheme]
            tail_bytes = draw.choice([1 << 14, 1 << 18, 1 << 22])
            live.note_tail(scheme, tail_bytes, latency_s + tail_bytes / bytes_per_s)
        for is_same_host, scheme in ((True, "shm"), (False, schemes[0])):
            latency_s, bytes_per_s = links[scheme]
            handoff_s = live.corrected().handoff_s(1 << 20, is_same_host)
            assert handoff_s == pytest.approx(latency_s + (1 << 20) / bytes_per_s, rel=0.05)


def test_the_network_is_taken_for_no_better_than_the_host_until_it_is_learned() -> None:
    live = LiveProfile(TRUE)
    for tails in range(1, 101):
        live.note_tail("shm", 1 << 18, 0.002)
        near_s, far_s = (live.corrected().handoff_s(1 << 20, is_same_host) for is_same_host in (True, False))
        assert far_s >= near_s, tails
    live.note_tail("tcp", 1 << 18, 0.009)
    assert live.corrected().handoff_s(1 << 20, False) >= live.corrected().handoff_s(1 << 20, True)
    for _ in range(100):
        live.note_tail("tcp", 1 << 18, 0.009)
    assert live.corrected().handoff_s(1 << 18, False) == pytest.approx(0.009, rel=0.05)


def test_a_profile_is_published_anew_only_when_a_prediction_changes() -> None:
    live = LiveProfile(TRUE)
    draw = random.Random(3)
    for work in batches(draw, 400):
        live.note_step(work, seconds(TRUE, work) * draw.uniform(0.98, 1.02))
    assert live.published() is TRUE
    slower = replace(TRUE, decode_step_s=0.03)
    for work in batches(draw, 2000):
        live.note_step(work, seconds(slower, work))
    assert live.published() is live.published()
    assert live.published().step_s(1, 100) == pytest.approx(slower.step_s(1, 100), rel=0.08)


def test_a_spread_is_no_news_and_is_published_with_the_next() -> None:
    live, work = LiveProfile(TRUE), StepWork(0, 0.0, 8, 1000)
    for _ in range(200):
        live.note_step(work, TRUE.step_s(8, 1000))
    live.note_step(work, 1.0)
    assert live.corrected().step_spread > 0.2
    assert live.published() is TRUE
    for _ in range(2000):
        live.note_step(work, 3 * TRUE.step_s(8, 1000))
    assert live.published().step_spread == live.corrected().step_spread


def test_the_spread_of_steps_is_that_of_their_logarithm_and_stalls_add_to_it() -> None:
    draw = random.Random(6)
    for sigma in (0.0, 0.2, 0.5):
        live = LiveProfile(TRUE)
        for work in batches(draw, 2000):
            live.note_step(work, seconds(TRUE, work) * draw.lognormvariate(0, sigma))
        assert live.corrected().step_spread == pytest.approx(sigma, abs=0.05)
    assert LiveProfile(replace(TRUE, step_spread=0.3)).corrected().step_spread == 0.3
    assert taught(batches(draw, 400), draw).corrected().step_spread > 0.3


def test_the_spread_of_handoffs_is_told_apart_from_that_of_steps() -> None:
    draw, live = random.Random(7), LiveProfile(TRUE)
    for _ in range(1000):
        live.note_tail("shm", 1 << 16, 0.004 * draw.lognormvariate(0, 0.8))
    profile = live.corrected()
    assert profile.handoff_spread == pytest.approx(0.8, abs=0.2)
    assert (profile.step_spread, live.published().handoff_spread) == (0.0, profile.handoff_spread)


def test_the_limit_of_a_pass_is_published_with_the_speeds_and_moves_with_them() -> None:
    live = LiveProfile(TRUE, ChunkLimit(256))
    assert live.published() == replace(
        TRUE, prefill_chunk_tokens=256, prefill_chunk_s=AUTO_PASSES * TRUE.prefill_pass_s
    )
    slower = replace(TRUE, prefill_pass_s=0.04)
    for work in prompts(random.Random(5), 2000):
        live.note_step(work, seconds(slower, work))
    published = live.published()
    assert published.prefill_pass_s > 2 * TRUE.prefill_pass_s
    assert published.prefill_chunk_s == AUTO_PASSES * published.prefill_pass_s
    assert LiveProfile(TRUE, ChunkLimit(256, math.inf)).published().prefill_chunk_s == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 10_000), st.floats(0, 1e9), st.floats(-1, 1e6)), min_size=1, max_size=60
    )
)
def test_no_observation_makes_a_term_negative_or_infinite(noted: list[tuple[int, float, float]]) -> None:
    fit = TermFit((0.001, 0.0, 0.0), (1, 256, 32768), memory_s=1.0)
    for tokens, pairs, took_s in noted:
        fit.note((1, tokens, pairs), took_s)
    assert all(0 <= term < 1e9 for term in fit.terms)


def test_steps_of_one_shape_leave_the_other_terms_to_what_was_measured() -> None:
    live = LiveProfile(TRUE)
    for _ in range(5000):
        live.note_step(StepWork(0, 0.0, 8, 1000), TRUE.step_s(8, 1000))
    assert live.corrected().step_s(1, 100) == pytest.approx(TRUE.step_s(1, 100), rel=0.1)
    assert live.corrected().step_s(32, 8000) == pytest.approx(TRUE.step_s(32, 8000), rel=0.1)
