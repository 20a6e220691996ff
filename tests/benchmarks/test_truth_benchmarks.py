"""What the benchmarks of the simulator and of interference make of what they saw."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import distserve
import interference
import numpy as np
import pytest
import truth
import truth_live
from scaled_workload import BLOCK_TOKENS, at_load, generated, later, traced
from token_stream import TokenTimes

from baton import demo_model
from baton.engine.model_config import ModelConfig
from baton.errors import ConfigError
from baton.fleet import WorkerProfile

SPEEDS = WorkerProfile(5000.0, 0.005, 1e9, prefill_pass_s=0.002, handoff_latency_s=0.001)


def test_a_scaled_workload_keeps_its_prefixes_and_its_load() -> None:
    sent = generated("chat", 0, 200, 1, output_scale=0.1)
    assert sent.block_tokens == BLOCK_TOKENS
    assert all(len(request.hashes) == request.prompt_tokens // BLOCK_TOKENS for request in sent.requests)
    assert sent.unlimited_hit_rate() > 0.3
    busy_s = sum(SPEEDS.prefill_s(r.prompt_tokens, 0) for r in sent.requests) * (
        1 - sent.unlimited_hit_rate()
    )
    fast = replace(SPEEDS, decode_step_s=1e-6, decode_s_per_sequence=1e-6)
    assert busy_s / at_load(sent, SPEEDS, fast, 0.5).requests[-1].arrival_s == pytest.approx(0.5, rel=0.15)
    slow = replace(SPEEDS, decode_step_s=1.0)
    assert (
        at_load(sent, SPEEDS, slow, 0.5).requests[-1].arrival_s
        > sum(r.output_tokens for r in sent.requests) / 4
    )


def test_what_comes_before_the_test_is_the_same_workload() -> None:
    whole = generated("chat", 0, 60, 1, output_scale=0.1)
    test = later(generated("chat", 20, 40, 1, output_scale=0.1), whole.requests[20].arrival_s)
    assert [request.hashes for request in test.requests] == [r.hashes for r in whole.requests[20:]]
    of_whole = [request.arrival_s for request in whole.requests[20:]]
    assert [request.arrival_s for request in test.requests] == pytest.approx(of_whole)


def test_a_trace_that_ends_too_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("timestamp,input_length,output_length\n0,100,10\n")
    with pytest.raises(ConfigError, match=r"short\.csv has no request after the first 5"):
        traced(tmp_path / "short.csv", 5, 10, 1.0)


def test_a_simulation_of_known_speeds_takes_what_these_say() -> None:
    sent = at_load(generated("chat", 0, 50, 1, output_scale=0.1), SPEEDS, SPEEDS, 0.01)
    nothing, model = replace(sent, requests=[]), ModelConfig.from_folder(demo_model.PATH, "auto", None)
    told = truth.simulate(nothing, sent, truth.Known(SPEEDS, SPEEDS), model, 100_000)
    delayed = truth.simulate(nothing, sent, truth.Known(SPEEDS, SPEEDS, (0.25,)), model, 100_000)
    assert min(told.ttft_s) > SPEEDS.prefill_pass_s
    assert np.array(delayed.ttft_s) - np.array(told.ttft_s) == pytest.approx(0.25)
    rows = truth.figures({"live": told, "corrected": told, "meanwhile": told, "at start": delayed})
    assert [row.value for row in rows[:8]] == [0.0] * 8
    assert rows[8].value is not None
    assert rows[8].value > 0


def test_a_simulation_finds_cached_what_came_before_the_test() -> None:
    sent = at_load(generated("chat", 0, 50, 1, output_scale=0.1), SPEEDS, SPEEDS, 0.01)
    again = later(sent, sent.requests[-1].arrival_s + 10)
    model = ModelConfig.from_folder(demo_model.PATH, "auto", None)
    known = truth.Known(SPEEDS, SPEEDS)
    cold = truth.simulate(replace(sent, requests=[]), again, known, model, 100_000)
    warm = truth.simulate(sent, again, known, model, 100_000)
    assert len(warm.ttft_s) == len(cold.ttft_s) == 50 * truth.DRAWS
    assert sum(warm.ttft_s) < sum(cold.ttft_s) / 2


def test_what_is_beside_the_workers_is_learned_from_prompts_that_were_handed_off(tmp_path: Path) -> None:
    """Of a first token after 0.5 s, 0.2 s waiting and 0.1 s computing or waiting for memory are the worker's."""
    log = tmp_path / "events.jsonl"
    times = {"queued_s": 0.2, "compute_s": 0.05, "reserve_s": 0.1}
    events = [
        {"request_id": "a", "transition": "hand_off", **times},
        {"request_id": "b", "transition": "decode_locally"},
        {"request_id": "of somebody else", "transition": "hand_off", **times},
        {"time": 1.0, "planner": {}},
    ]
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    answers = [TokenTimes(1.0, [1.5], "a"), TokenTimes(1.0, [9.0], "b")]
    assert truth_live.fronts_s(answers, log) == pytest.approx((0.2,))
    assert truth_live.fronts_s([], log) == (0.0,)


def test_the_routers_word_to_decode_workers_is_learned_from_all_that_were_handed_off(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text("")
    assert truth_live.mean_start_s(log) == 0.0
    events: list[dict[str, object]] = [{"transition": "hand_off", "start_s": s} for s in (0.001, 0.003)]
    log.write_text(
        "".join(json.dumps(event) + "\n" for event in [*events, {"transition": "finish"}, {"planner": {}}])
    )
    assert truth_live.mean_start_s(log) == pytest.approx(0.002)


def test_distserve_draws_the_published_mean_within_the_context() -> None:
    options = argparse.Namespace(prompt_spread=1.0, output_spread=1.0)
    drawn = [request for seed in range(10) for request in distserve.requests(options, seed).requests]
    assert np.mean([request.prompt_tokens for request in drawn]) == pytest.approx(755.5, rel=0.05)
    assert max(request.prompt_tokens + request.output_tokens for request in drawn) <= distserve.CONTEXT_TOKENS


def test_interference_compares_the_two_phases_of_each_cluster() -> None:
    stream = TokenTimes(0.0, [n * 0.01 for n in range(101)] + [1.0 + n * 0.02 for n in range(1, 51)])
    shorts = [TokenTimes(at, [at + took]) for at, took in ((0.2, 0.05), (0.4, 0.05), (1.2, 0.1), (1.4, 0.1))]
    seen = interference.Observed([stream], shorts, [TokenTimes(1.0, [1.5])], (0.0, 1.001), (1.001, 2.1))
    itl, ttft, long = interference.figures({"disaggregated": seen})
    assert itl.ratio == pytest.approx(0.5)
    assert ttft.ratio == pytest.approx(0.5)
    assert long.value == pytest.approx(500.0)
