"""The typed weights of a decoder, loaded from a checkpoint with Hugging Face's tensor names.

Query, key and value projections are one matrix, and so are gate and up: one product instead of three or two.
Tensors that are neither fused nor converted stay mapped from the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine import packed_linear
from baton.engine.architecture import Architecture
from baton.engine.checkpoint import Checkpoint
from baton.engine.linear import Gate, Head, Linear, Product
from baton.engine.parallel import WHOLE, Collective, Shard, SummedLinear, part_of
from baton.engine.weight_memory import WeightMemory

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. qkv: all query heads, then all key heads, then all value heads. query_norm, key_norm:
    [head_dim], or None."""

    input_norm: Tensor
    qkv: Product
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Product
    post_attention_norm: Tensor
    gate: Gate
    down: Product


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """embedding: [vocab_size, hidden_size]; lm_head computes with the same where they are tied. None on a rank that
    computes no logits."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: Head | None


def expected_shapes(config: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder with this architecture must hold."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not config.tied_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        shapes.update((f"model.layers.{layer}.{name}", shape) for name, shape in _layer_shapes(config))
    return shapes


def _layer_shapes(config: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = (
        ("self_attn.q_proj", queries, hidden, config.qkv_bias),
        ("self_attn.k_proj", keys, hidden, config.qkv_bias),
        ("self_attn.v_proj", keys, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, queries, config.output_bias),
        ("mlp.gate_proj", mlp, hidden, config.mlp_bias),
        ("mlp.up_proj", mlp, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, mlp, config.mlp_bias),
    )
    for name, rows, columns, has_bias in linears:
        yield f"{name}.weight", (rows, columns)
        if has_bias:
            yield f"{name}.bias", (rows,)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)


def weight_count(config: Architecture) -> int:
    """Numbers in the weights of a model, or of the shard that has these heads and this width."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def verify(config: Architecture, checkpoint: Checkpoint) -> None:
    """Raises ModelFolderError unless every tensor is there, well shaped; reads headers alone."""
    for name, shape in expected_shapes(config).items():
        checkpoint.require(name, shape)
    if LM_HEAD in checkpoint:
        checkpoint.require(LM_HEAD, (config.vocab_size, config.hidden_size))


class WeightLoader:
    """Brings tensors of one verified checkpoint, or one shard of them, to a dtype and a device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard = WHOLE,
        collective: Collective | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._shard = shard
        self._collective = collective
        self._memory = WeightMemory()

    def decoder(self, config: Architecture) -> DecoderWeights:
        """config: of the whole model."""
        embedding = self._load(EMBEDDING)
        # As transformers does, a head of its own is used even where the configuration calls it tied.
        # Only rank 0 computes logits.
        lm_head = None
        if self._shard.rank == 0:
            weight = self._load(LM_HEAD) if LM_HEAD in self._checkpoint else embedding
            lm_head = packed_linear.head(weight, self._memory)
        layers = tuple(self._layer(config, f"model.layers.{layer}.") for layer in range(config.num_layers))
        return DecoderWeights(embedding, layers, self._load(FINAL_NORM), lm_head)

    def _layer(self, config: Architecture, prefix: str) -> LayerWeights:
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        queries, keys = self._shard.query_rows(config), self._shard.kv_rows(config)
        width = self._shard.mlp_rows(config)
        qkv = {f"{attention}q_proj": queries, f"{attention}k_proj": keys, f"{attention}v_proj": keys}
        gate_up = {f"{mlp}gate_proj": width, f"{mlp}up_proj": width}
        return LayerWeights(
            input_norm=self._load(f"{prefix}input_layernorm.weight"),
            qkv=packed_linear.product(self._linear(qkv, config.qkv_bias), self._memory),
            query_norm=self._load(f"{attention}q_norm.weight") if config.qk_norm else None,
            key_norm=self._load(f"{attention}k_norm.weight") if config.qk_norm else None,
            output=self._summed(f"{attention}o_proj", queries, config.output_bias),
            post_attention_norm=self._load(f"{prefix}post_attention_layernorm.weight"),
            gate=packed_linear.gate(self._linear(gate_up, config.mlp_bias), self._memory),
            down=self._summed(f"{mlp}down_proj", width, config.mlp_bias),
        )

    def _linear(self, rows_of: Mapping[str, range], has_bias: bool) -> Linear:
        """These rows of the projections, one below the other."""
        return Linear(self._rows("weight", rows_of), self._rows("bias", rows_of) if has_bias else None)

    def _summed(self, name: str, columns: range, has_bias: bool) -> Product:
        """These columns of a projection, whose results are added up over the ranks."""
        bias = self._load(f"{name}.bias") if has_bias else None
        if self._collective is None:
            return packed_linear.product(Linear(self._load(f"{name}.weight"), bias), self._memory)
        part = part_of(self._checkpoint.tensor(f"{name}.weight"), columns, dim=1)
        weight = part.to(device=self._device, dtype=self._dtype).contiguous()
        return SummedLinear(weight, bias, self._collective)

    def _rows(self, kind: str, rows_of: Mapping[str, range]) -> Tensor:
        parts = [
            part_of(self._checkpoint.tensor(f"{name}.{kind}"), rows, dim=0) for name, rows in rows_of.items()
        ]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        fused = torch.empty(shape, dtype=self._dtype, device=self._device)
        for part, rows in zip(parts, torch.split(fused, [len(part) for part in parts]), strict=True):
            rows.copy_(part)
        return fused

    def _load(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(device=self._device, dtype=self._dtype)
