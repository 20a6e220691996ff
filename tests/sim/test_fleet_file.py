from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from baton.errors import ConfigError
from baton.fleet import Role
from baton.sim.fleet_file import SPEEDS, profile_names, read_fleet, read_profile

FLEET = """\
chunk-tokens = 8192

[objectives]
ttft = 1.0

[[pool]]
role = "prefill"
workers = 2
profile = "h100-80g-llama-8b"

[[pool]]
role = "decode"
workers = 3
profile = "h200-141g-llama-8b"
cost-per-hour = 1.5
"""


def fleet_file(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_a_fleet_is_its_pools_and_the_limits_of_router_and_schedulers(tmp_path: Path) -> None:
    spec = read_fleet(fleet_file(tmp_path, FLEET))
    assert [(pool.role, pool.workers) for pool in spec.pools] == [(Role.PREFILL, 2), (Role.DECODE, 3)]
    assert [pool.cost_per_hour for pool in spec.pools] == [2.99, 1.5]
    assert (spec.chunk_tokens, spec.max_running, spec.objectives.ttft) == (8192, 256, 1.0)


@pytest.mark.parametrize(
    ("line", "seconds"), [("", None), ("chunk-ms = 25", 0.025), ("chunk-ms = 0", math.inf)]
)
def test_a_steps_time_is_given_in_milliseconds(tmp_path: Path, line: str, seconds: float | None) -> None:
    assert read_fleet(fleet_file(tmp_path, f"{line}\n{FLEET}")).chunk_s == seconds


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("workers = 3", "workers = 0", r"line 13: .*>= 1.* \[pool.1.workers\]"),
        ("workers = 2", 'workers = "2"', r"line 8: .*int.* \[pool.0.workers\]"),
        ('role = "decode"', 'role = "decoder"', r"line 12: .*'decoder'.* \[pool.1.role\]"),
        ("workers = 3", "", r"line 11: .*workers.* \[pool.1\]"),
        ("workers = 3", "workers = 3\nworker = 3", r"line 14: .*worker.* \[pool.1.worker\]"),
        ("ttft = 1.0", "tfft = 1.0", r"line 4: .*tfft.* \[objectives.tfft\]"),
        ("ttft = 1.0", "ttft = 0", r"line 4: .* \[objectives.ttft\]"),
        ("[objectives]", "[objectives", r"line 3"),
        ("h200-141g-llama-8b", "h300", r"pool 1: profile 'h300' is unknown .*h100-80g-llama-70b"),
        ("h200-141g-llama-8b", "own.toml", r"own\.toml"),
        ('role = "decode"', 'role = "prefill"', r"decode"),
    ],
)
def test_a_malformed_fleet_is_refused_by_line_and_field(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.toml") as raised:
        read_fleet(fleet_file(tmp_path, FLEET.replace(old, new)))
    assert re.search(named, f"{raised.value.message} [{raised.value.field}]")


OWN = """\
prefill-tokens-per-s = 1000
decode-step-s = 0.02
copy-bytes-per-s = 1e9
kv-bytes-per-token = 1e5
kv-tokens = 10000
"""


def test_a_profile_of_ones_own_lies_beside_the_fleet(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    spec = read_fleet(fleet_file(tmp_path, FLEET.replace("h200-141g-llama-8b", "own.toml")))
    assert spec.pools[1].hardware.kv_tokens == 10_000


@pytest.mark.parametrize("line", ["step-spread = 11", "handoff-spread = -0.1", "step-spread = nan"])
def test_a_spread_that_no_clock_could_hold_is_refused_by_name(tmp_path: Path, line: str) -> None:
    (tmp_path / "own.toml").write_text(OWN + line)
    with pytest.raises(ConfigError, match=r"own\.toml") as raised:
        read_profile("own.toml", tmp_path)
    assert raised.value.field == line.partition(" ")[0]


# Published: dense bf16 FLOP/s, bytes and bytes/s of memory of one GPU; parameters, layers, heads of the models.
GPUS = {"h100-80g": (989.4e12, 80e9, 3.35e12), "h200-141g": (989.4e12, 141e9, 4.8e12)}
MODELS = {"llama-8b": (8.03e9, 32, 32), "llama-70b": (70.6e9, 80, 64)}
GPUS_A_WORKER = {"h100-80g-llama-70b": 4, "h200-141g-llama-70b": 2}


DERIVED = {f"{gpu}-{model}": (gpu, model) for gpu in GPUS for model in MODELS}

# DistServe's own fits, in ms: prefill of n tokens a + b n + c n²; decode a + b tokens of context + c sequences.
FITTED = {
    "a100-80g-opt-13b": ((16.457, 0.092648, 6.4748e-6), (19.935, 0.00062694, 0.038507), 1),
    "2x-a100-80g-opt-13b": ((13.403, 0.062343, 2.2269e-6), (13.295, 0.00034109, 0.062963), 2),
}

MEASURED = {"cpu-1-core-llama-43m": (12, 3, 64)}
"""Layers, KV heads and dimensions of a head of the model that it was measured with."""

NOT_MEASURED = {"cost_per_hour", "step_spread", "handoff_spread"}


def test_every_stored_profile_is_checked_against_its_source() -> None:
    assert set(profile_names()) == set(DERIVED) | set(FITTED) | set(MEASURED)


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_profile_has_every_term_and_the_bytes_of_its_model(tmp_path: Path, name: str) -> None:
    layers, kv_heads, head_dim = MEASURED[name]
    profile = read_profile(name, tmp_path)
    assert profile.kv_bytes_per_token == 2 * 2 * layers * kv_heads * head_dim
    assert min(getattr(profile.speeds(), term) for term in SPEEDS if term not in NOT_MEASURED) > 0


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_profile_repeats_the_fit(name: str) -> None:
    (pass_ms, token_ms, square_ms), (step_ms, context_ms, sequence_ms), gpus = FITTED[name]
    profile = read_profile(name, Path())
    assert profile.prefill_pass_s == pytest.approx(pass_ms / 1e3, rel=0.01)
    assert profile.prefill_tokens_per_s == pytest.approx(1e3 / token_ms, rel=0.01)
    assert profile.prefill_s_per_pair == pytest.approx(2 * square_ms / 1e3, rel=0.01)
    assert profile.decode_step_s == pytest.approx((step_ms + sequence_ms) / 1e3, rel=0.01)
    assert profile.decode_s_per_sequence == pytest.approx(sequence_ms / 1e3, rel=0.01)
    assert profile.decode_s_per_context_token == pytest.approx(context_ms / 1e3, rel=0.01)
    assert profile.kv_tokens == pytest.approx((gpus * 80e9 * 0.9 - 2 * 12.9e9) / 819200, rel=0.01)


@pytest.mark.parametrize("name", DERIVED)
def test_a_stored_profile_follows_from_the_published_figures(name: str) -> None:
    gpu, model = DERIVED[name]
    (flops, memory_bytes, bytes_per_s), (parameters, layers, heads) = GPUS[gpu], MODELS[model]
    count = GPUS_A_WORKER.get(name, 1)
    share = count * (0.85 if count > 1 else 1.0)
    flops_in_use, bytes_in_use = flops * 0.5 * share, bytes_per_s * 0.6 * share
    kv_bytes = 2 * layers * 8 * 128 * 2
    profile = read_profile(name, Path())
    assert profile.prefill_tokens_per_s == pytest.approx(flops_in_use / (2 * parameters), rel=0.01)
    assert profile.prefill_s_per_pair == pytest.approx(4 * layers * heads * 128 / flops_in_use, rel=0.01)
    assert profile.decode_step_s == pytest.approx(2 * parameters / bytes_in_use, rel=0.01)
    assert profile.decode_s_per_sequence == pytest.approx(2 * parameters / flops_in_use, rel=0.01)
    assert profile.decode_s_per_context_token == pytest.approx(kv_bytes / bytes_in_use, rel=0.01)
    assert profile.copy_bytes_per_s == pytest.approx(50e9 * 0.7 * count)
    assert profile.kv_bytes_per_token == kv_bytes
    free_bytes = memory_bytes * 0.9 * count - 2 * parameters
    assert profile.kv_tokens == pytest.approx(free_bytes / kv_bytes, rel=0.01)
