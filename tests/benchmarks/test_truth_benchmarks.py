"""What the benchmarks of the simulator and of interference make of what they saw."""

from __future__ import annotations

import argparse
from pathlib import Path

import distserve
import interference
import numpy as np
import pytest
import truth
from scaled_workload import BLOCK_TOKENS, at_load, generated, traced
from token_stream import TokenTimes

from baton import demo_model
from baton.engine.model_config import ModelConfig
from baton.errors import ConfigError
from baton.fleet import WorkerProfile

SPEEDS = WorkerProfile(5000.0, 0.005, 1e9, prefill_pass_s=0.002, handoff_latency_s=0.001)


def test_a_scaled_workload_keeps_its_prefixes_and_its_load() -> None:
    sent = generated("chat", 200, 1, output_scale=0.1)
    assert sent.block_tokens == BLOCK_TOKENS
    assert all(len(request.hashes) == request.prompt_tokens // BLOCK_TOKENS for request in sent.requests)
    assert sent.unlimited_hit_rate() > 0.3
    busy_s = sum(SPEEDS.prefill_s(r.prompt_tokens, 0) for r in sent.requests) * (
        1 - sent.unlimited_hit_rate()
    )
    assert busy_s / at_load(sent, SPEEDS, 0.5).requests[-1].arrival_s == pytest.approx(0.5, rel=0.15)


def test_a_trace_that_ends_too_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("timestamp,input_length,output_length\n0,100,10\n")
    with pytest.raises(ConfigError, match=r"short\.csv has no request after the first 5"):
        traced(tmp_path / "short.csv", 5, 10, 1.0)


def test_a_simulation_of_known_speeds_takes_what_these_say() -> None:
    sent = at_load(generated("chat", 50, 1, output_scale=0.1), SPEEDS, 0.01)
    model = ModelConfig.from_folder(demo_model.PATH, "auto", None)
    told = truth.simulate(sent, truth.Known(SPEEDS, SPEEDS, 0.0), model, 100_000)
    delayed = truth.simulate(sent, truth.Known(SPEEDS, SPEEDS, 0.25), model, 100_000)
    assert min(told.ttft_s) > SPEEDS.prefill_pass_s
    assert np.array(delayed.ttft_s) - np.array(told.ttft_s) == pytest.approx(0.25)
    rows = truth.figures({"live": told, "corrected": told, "at start": delayed})
    assert [row.value for row in rows[:4]] == [0.0] * 4
    assert rows[4].value is not None
    assert rows[4].value > 0


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
