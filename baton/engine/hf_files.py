"""The JSON files of a Hugging Face model folder, as published: typed, checked, nothing derived.

Both generations are read: `rope_scaling` + `rope_theta` + `torch_dtype` (transformers 4 and older) and
`rope_parameters` + `dtype` (transformers 5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from baton.errors import ModelFolderError

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
TokenIds = int | list[int] | None
Contents = TypeVar("Contents")


class RopeFields(msgspec.Struct, frozen=True, kw_only=True):
    """`rope_parameters` or `rope_scaling`; which fields count depends on the type (`baton.engine.rope`)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: float | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    full_attention: dict[str, Any] | None = None
    sliding_attention: dict[str, Any] | None = None


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """`config.json`. A field that a family may leave out has the default of transformers, or UNSET where
    leaving it out means something else than null."""

    model_type: str
    architectures: list[str] | None = None
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: Count | None = None
    vocab_size: Count
    max_position_embeddings: Count
    original_max_position_embeddings: Count | None = None
    rms_norm_eps: Positive = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    partial_rotary_factor: float | None = None
    rope_theta: Positive | None = None
    rope_scaling: RopeFields | None = None
    rope_parameters: RopeFields | None = None
    sliding_window: Count | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    eos_token_id: TokenIds = None
    quantization_config: dict[str, Any] | None = None


class GenerationConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """`generation_config.json`, as far as it concerns the engine."""

    eos_token_id: TokenIds = None


class ShardIndexFile(msgspec.Struct, frozen=True, kw_only=True):
    """`model.safetensors.index.json`: the shard of each tensor."""

    weight_map: dict[str, str]


def read_json(path: Path, contents: type[Contents]) -> Contents:
    """Reads `path` as `contents`; raises ModelFolderError naming the file and the field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=contents)
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror})") from error
    except msgspec.ValidationError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path}: not valid JSON ({error})") from error
