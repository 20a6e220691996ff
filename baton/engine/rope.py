"""Rotary position embeddings and their scaling types, with the numerics of transformers 5.

The angle of a token is a pure function of (position, prompt_tokens). Only `dynamic` looks at the second: its
base grows with the sequence, so the tokens of a prompt rotate by the base for the prompt's length and a
generated token at position p by the base for p + 1; cached keys keep what they were rotated with.

RoPE: https://arxiv.org/abs/2104.09864. Linear: https://arxiv.org/abs/2306.15595. Dynamic NTK: bloc97 and
emozilla, r/LocalLLaMA, 2023. YaRN: https://arxiv.org/abs/2309.00071. llama3: Llama 3.1's reference code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.engine.hf_files import RopeFields


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """What fixes the angles: the rotation's type and base, the head's size, the model's own context length
    and the fields of that type. Checked where it is built (`baton.engine.architecture`)."""

    type: str
    theta: float
    head_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    fields: RopeFields = field(default_factory=RopeFields)

    @property
    def factor(self) -> float:
        """How far the context is stretched; YaRN may leave it to the ratio of the two lengths."""
        if self.fields.factor is not None:
            return self.fields.factor
        return self.max_position_embeddings / self.original_max_position_embeddings

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the scaling is made for."""
        if self.type in ("linear", "dynamic"):
            return int(self.max_position_embeddings * self.factor)
        if self.type == "yarn":
            return max(self.max_position_embeddings, int(self.original_max_position_embeddings * self.factor))
        return self.max_position_embeddings

    def prefix_cache_variant(self, prompt_tokens: int) -> str:
        """ "" where the KV of a token does not depend on its prompt's length, else a name for that length."""
        if self.type == "dynamic" and prompt_tokens > self.max_position_embeddings:
            return f"dynamic-rope-{prompt_tokens}"
        return ""


Frequencies = tuple[Tensor, float]
"""Inverse frequencies, float32 [head_dim / 2], and the factor on cosine and sine."""


def _exponents(config: RopeConfig) -> Tensor:
    return torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim


def _default(config: RopeConfig) -> Frequencies:
    return 1.0 / config.theta ** _exponents(config), 1.0


def _linear(config: RopeConfig) -> Frequencies:
    return _default(config)[0] / config.factor, 1.0


def _llama3(config: RopeConfig) -> Frequencies:
    """Long wavelengths are stretched by the factor, short ones kept, those between interpolated."""
    low, high = config.fields.low_freq_factor, config.fields.high_freq_factor
    assert low is not None
    assert high is not None
    context_tokens = config.original_max_position_embeddings
    inv_freq = _default(config)[0]
    wavelength = 2 * math.pi / inv_freq
    stretched = torch.where(wavelength > context_tokens / low, inv_freq / config.factor, inv_freq)
    smooth = (context_tokens / wavelength - low) / (high - low)
    blended = (1 - smooth) * stretched / config.factor + smooth * stretched
    is_between = (wavelength >= context_tokens / high) & (wavelength <= context_tokens / low)
    return torch.where(is_between, blended, stretched), 1.0


def _yarn(config: RopeConfig) -> Frequencies:
    """NTK-by-parts: a linear ramp over dimensions from extrapolation (fast) to interpolation (slow)."""
    fields, head_dim = config.fields, config.head_dim
    frequency = config.theta ** _exponents(config)
    low = _yarn_dimension(config, fields.beta_fast or 32)
    high = _yarn_dimension(config, fields.beta_slow or 1)
    if fields.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    inv_freq = 1.0 / (config.factor * frequency) * (1 - keep) + 1.0 / frequency * keep
    return inv_freq, _yarn_attention_factor(config)


def _yarn_dimension(config: RopeConfig, rotations: float) -> float:
    """The dimension that turns `rotations` times within the original context."""
    ratio = config.original_max_position_embeddings / (rotations * 2 * math.pi)
    return config.head_dim * math.log(ratio) / (2 * math.log(config.theta))


def _yarn_attention_factor(config: RopeConfig) -> float:
    fields = config.fields

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0

    if fields.attention_factor is not None:
        return fields.attention_factor
    if fields.mscale and fields.mscale_all_dim:
        return mscale(fields.mscale) / mscale(fields.mscale_all_dim)
    return mscale(1.0)


FREQUENCIES: dict[str, Callable[[RopeConfig], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,  # up to the model's own length; beyond it, see RotaryEmbedding._dynamic
    "llama3": _llama3,
    "yarn": _yarn,
}

REQUIRED_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}


class RotaryEmbedding:
    """Cosines and sines for one device."""

    def __init__(self, config: RopeConfig, device: torch.device) -> None:
        self._config = config
        inv_freq, self._attention_factor = FREQUENCIES[config.type](config)
        self._inv_freq = inv_freq.to(device)
        self._exponents = _exponents(config).to(device)

    def cos_sin(self, positions: Tensor, prompt_tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine, `dtype` [T, 1, head_dim / 2], of T tokens at `positions` (int64 [T]) whose prompts
        have `prompt_tokens` (int64 [T]) tokens."""
        inv_freq = self._inv_freq
        if self._config.type == "dynamic":
            inv_freq = self._dynamic(torch.maximum(prompt_tokens, positions + 1))
        angles = (positions[:, None].float() * inv_freq)[:, None]
        return (
            (angles.cos() * self._attention_factor).to(dtype),
            (angles.sin() * self._attention_factor).to(dtype),
        )

    def _dynamic(self, effective_tokens: Tensor) -> Tensor:
        """Inverse frequencies, float32 [T, head_dim / 2], for sequences of `effective_tokens` (int64 [T])."""
        config = self._config
        limit = config.max_position_embeddings
        stretch = (config.factor * torch.clamp(effective_tokens, min=limit) / limit) - (config.factor - 1)
        theta = config.theta * stretch ** (config.head_dim / (config.head_dim - 2))
        scaled = 1.0 / theta[:, None] ** self._exponents
        return torch.where((effective_tokens > limit)[:, None], scaled, self._inv_freq)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates `heads` [T, H, head_dim] by angles given as `cos`, `sin` [T, 1, head_dim / 2]; dimension i
    pairs with i + head_dim / 2, the layout of Hugging Face checkpoints."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
