"""What a decoder computes: its shape and numerics, as read from `config.json`, for the families we serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from baton.engine.hf_files import ConfigFile, RopeFields
from baton.engine.rope import FREQUENCIES, REQUIRED_FIELDS, RopeConfig
from baton.errors import ModelFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one model type differs from the common decoder, and what it takes a missing field to mean.

    qkv_bias, output_bias: None follows `attention_bias`. windows: "none", "all" layers, or by "layer_types".
    kv_heads: None follows the number of heads. head_dim: None divides the hidden size among the heads.
    """

    name: str
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    has_mlp_bias: bool = False
    qk_norm: bool = False
    windows: str = "none"
    kv_heads: int | None = None
    head_dim: int | None = None


FAMILIES = {
    "llama": Family(name="LlamaForCausalLM", has_mlp_bias=True),
    "mistral": Family(
        name="MistralForCausalLM", qkv_bias=False, output_bias=False, windows="all", kv_heads=8
    ),
    "qwen2": Family(
        name="Qwen2ForCausalLM", qkv_bias=True, output_bias=False, windows="layer_types", kv_heads=32
    ),
    "qwen3": Family(name="Qwen3ForCausalLM", qk_norm=True, windows="layer_types", kv_heads=32, head_dim=128),
}
DEFAULT_SLIDING_WINDOW = 4096
DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One decoder. sliding_windows: per layer, the number of most recent tokens (its own included) that a
    token sees, None for all."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    sliding_windows: tuple[int | None, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool


def read_architecture(path: Path, file: ConfigFile) -> Architecture:
    """The architecture that `file`, read from `path`, describes; raises ModelFolderError where it is none
    that we serve."""
    family = _family(path, file)
    _refuse_unsupported(path, file)
    head_dim = file.head_dim or family.head_dim or file.hidden_size // file.num_attention_heads
    return Architecture(
        model_type=file.model_type,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_layers=file.num_hidden_layers,
        num_heads=file.num_attention_heads,
        num_kv_heads=_kv_heads(path, file, family),
        head_dim=head_dim,
        vocab_size=file.vocab_size,
        rms_norm_eps=file.rms_norm_eps,
        rope=_rope(path, file, head_dim),
        sliding_windows=_sliding_windows(path, file, family),
        qkv_bias=file.attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=file.attention_bias if family.output_bias is None else family.output_bias,
        mlp_bias=file.mlp_bias and family.has_mlp_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=file.tie_word_embeddings,
    )


def _family(path: Path, file: ConfigFile) -> Family:
    family = FAMILIES.get(file.model_type)
    if family is None:
        raise ModelFolderError(
            f"{path}: model_type {file.model_type!r} is not supported (supported: {', '.join(FAMILIES)})"
        )
    if file.architectures and family.name not in file.architectures:
        raise ModelFolderError(
            f"{path}: architectures {file.architectures} is not supported for model_type "
            f"{file.model_type!r} (supported: {family.name})"
        )
    return family


def _refuse_unsupported(path: Path, file: ConfigFile) -> None:
    if file.hidden_act != "silu":
        raise ModelFolderError(f"{path}: hidden_act {file.hidden_act!r} is not supported (supported: silu)")
    if file.quantization_config is not None:
        method = file.quantization_config.get("quant_method", "without a quant_method")
        raise ModelFolderError(
            f"{path}: quantization_config {method!r} is not supported (supported: no quantization; weights in "
            "float32, bfloat16 or float16)"
        )


def _kv_heads(path: Path, file: ConfigFile, family: Family) -> int:
    heads = family.kv_heads if file.num_key_value_heads is msgspec.UNSET else file.num_key_value_heads
    heads = heads or file.num_attention_heads
    if file.num_attention_heads % heads:
        raise ModelFolderError(
            f"{path}: num_attention_heads {file.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {heads}"
        )
    return heads


def _rope(path: Path, file: ConfigFile, head_dim: int) -> RopeConfig:
    fields = file.rope_scaling or file.rope_parameters or RopeFields()
    rope_type = fields.rope_type or fields.type or "default"
    if fields.full_attention or fields.sliding_attention:
        raise ModelFolderError(f"{path}: rope_parameters by layer type are not supported")
    if rope_type not in FREQUENCIES:
        raise ModelFolderError(
            f"{path}: rope type {rope_type!r} is not supported (supported: {', '.join(FREQUENCIES)})"
        )
    for name in REQUIRED_FIELDS[rope_type]:
        if getattr(fields, name) is None:
            raise ModelFolderError(f"{path}: rope type {rope_type!r} needs the field {name!r}")
    partial = fields.partial_rotary_factor or file.partial_rotary_factor or 1.0
    if partial != 1.0 or head_dim % 2:
        raise ModelFolderError(
            f"{path}: head_dim {head_dim} with partial_rotary_factor {partial}: only whole heads of even "
            "size can be rotated"
        )
    original = file.original_max_position_embeddings or fields.original_max_position_embeddings
    return RopeConfig(
        type=rope_type,
        theta=fields.rope_theta or file.rope_theta or DEFAULT_ROPE_THETA,
        head_dim=head_dim,
        max_position_embeddings=file.max_position_embeddings,
        original_max_position_embeddings=original or file.max_position_embeddings,
        fields=fields,
    )


def _sliding_windows(path: Path, file: ConfigFile, family: Family) -> tuple[int | None, ...]:
    layers = file.num_hidden_layers
    window = DEFAULT_SLIDING_WINDOW if file.sliding_window is msgspec.UNSET else file.sliding_window
    if family.windows == "none":
        return (None,) * layers
    if family.windows == "all":
        return (window,) * layers
    if not file.use_sliding_window:
        window = None
    types = file.layer_types
    if types is None:
        return tuple(window if layer >= file.max_window_layers else None for layer in range(layers))
    if len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise ModelFolderError(
            f"{path}: layer_types must name full_attention or sliding_attention for each of {layers} "
            f"layers, found {types}"
        )
    if window is None and "sliding_attention" in types:
        raise ModelFolderError(f"{path}: layer_types has sliding_attention, but no sliding window is in use")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
