"""Rotary angles equal those of transformers for every scaling type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from baton.engine.hf_files import RopeFields
from baton.engine.rope import RopeConfig, RotaryEmbedding, rotate

HEAD_DIM = 32
MODEL_LENGTH = 128
LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("linear", {"factor": 4.0}),
    ("dynamic", {"factor": 2.0}),
    ("llama3", LLAMA3),
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32}),
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32, "truncate": False}),
    ("yarn", {"factor": 40.0, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.0}),
    ("yarn", {"factor": 4.0, "attention_factor": 1.25}),
]


def make_config(rope_type: str, fields: dict[str, Any], theta: float = 10_000.0) -> RopeConfig:
    original = fields.get("original_max_position_embeddings", MODEL_LENGTH)
    return RopeConfig(rope_type, theta, HEAD_DIM, MODEL_LENGTH, original, RopeFields(**fields))


def make_oracle(rope_type: str, fields: dict[str, Any], theta: float = 10_000.0) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": rope_type, "rope_theta": theta, **fields}
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=64,
            num_attention_heads=2,
            head_dim=HEAD_DIM,
            max_position_embeddings=MODEL_LENGTH,
            rope_parameters=parameters,
        )
    )


def oracle_cos_sin(
    oracle: LlamaRotaryEmbedding, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [T, HEAD_DIM] each."""
    cos, sin = oracle(torch.zeros(1), positions[None])
    return cos[0], sin[0]


def cos_sin(
    config: RopeConfig, positions: torch.Tensor, prompt_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [T, HEAD_DIM / 2] each."""
    prompts = torch.full_like(positions, prompt_tokens)
    cos, sin = RotaryEmbedding(config, torch.device("cpu")).cos_sin(positions, prompts, torch.float32)
    return cos[:, 0], sin[:, 0]


@pytest.mark.parametrize(("rope_type", "fields"), CASES)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_angles_of_a_prompt_equal_those_of_transformers(
    rope_type: str, fields: dict[str, Any], theta: float
) -> None:
    for prompt_tokens in (1, MODEL_LENGTH, 5 * MODEL_LENGTH):
        positions = torch.arange(prompt_tokens)
        actual = cos_sin(make_config(rope_type, fields, theta), positions, prompt_tokens)
        expected = oracle_cos_sin(make_oracle(rope_type, fields, theta), positions)
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(torch.cat((ours, ours), -1), theirs, atol=2e-5, rtol=0)


@given(prompt_tokens=st.integers(1, 2 * MODEL_LENGTH), output_tokens=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_dynamic_angles_follow_transformers_through_generation(
    prompt_tokens: int, output_tokens: int
) -> None:
    """One call for the prompt and one a generated token, on an embedding that has seen nothing else."""
    config, oracle = make_config("dynamic", {"factor": 2.0}), make_oracle("dynamic", {"factor": 2.0})
    calls = [torch.arange(prompt_tokens)]
    calls += [torch.tensor([prompt_tokens + index]) for index in range(output_tokens)]
    expected = torch.cat([oracle_cos_sin(oracle, positions)[0] for positions in calls])
    actual = cos_sin(config, torch.arange(prompt_tokens + output_tokens), prompt_tokens)[0]
    # An angle of some hundred radians has a last place of 3e-5 in float32.
    torch.testing.assert_close(torch.cat((actual, actual), -1), expected, atol=1e-4, rtol=0)


@given(first=st.integers(1, 4 * MODEL_LENGTH), second=st.integers(1, 4 * MODEL_LENGTH))
@settings(max_examples=50, deadline=None)
def test_prompts_of_one_cache_variant_have_equal_angles(first: int, second: int) -> None:
    config = make_config("dynamic", {"factor": 2.0})
    positions = torch.arange(min(first, second))
    equal = torch.equal(cos_sin(config, positions, first)[0], cos_sin(config, positions, second)[0])
    if config.prefix_cache_variant(first) == config.prefix_cache_variant(second):
        assert equal


@pytest.mark.parametrize(("rope_type", "fields"), [case for case in CASES if case[0] != "dynamic"])
def test_other_types_share_one_cache_variant(rope_type: str, fields: dict[str, Any]) -> None:
    assert make_config(rope_type, fields).prefix_cache_variant(100 * MODEL_LENGTH) == ""


def test_rotate_pairs_dimensions_as_transformers_does() -> None:
    heads = torch.randn(7, 3, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7)
    cos, sin = oracle_cos_sin(make_oracle("default", {}), positions)
    expected = apply_rotary_pos_emb(heads, heads, cos, sin)[0]
    half_cos, half_sin = cos_sin(make_config("default", {}), positions, 7)
    assert torch.equal(rotate(heads, half_cos[:, None], half_sin[:, None]), expected)


@pytest.mark.parametrize(
    ("rope_type", "fields", "tokens"),
    [
        ("default", {}, MODEL_LENGTH),
        ("linear", {"factor": 4.0}, 4 * MODEL_LENGTH),
        ("dynamic", {"factor": 2.5}, 320),
        ("llama3", LLAMA3, MODEL_LENGTH),
        ("yarn", {"factor": 8.0, "original_max_position_embeddings": MODEL_LENGTH}, 8 * MODEL_LENGTH),
        ("yarn", {"original_max_position_embeddings": 32}, MODEL_LENGTH),
    ],
)
def test_context_is_as_long_as_the_scaling_is_made_for(
    rope_type: str, fields: dict[str, Any], tokens: int
) -> None:
    assert make_config(rope_type, fields).context_tokens == tokens
