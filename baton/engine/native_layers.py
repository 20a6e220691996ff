"""All layers of a model in one call of native code: a step then has no more Python in it than a layer had."""

from __future__ import annotations

import torch
from torch import Tensor

from baton.engine.attention.cpu import CpuAttention
from baton.engine.kernels import float32_bits, native
from baton.engine.model_config import ModelConfig
from baton.engine.packed_linear import PackedGate, PackedLinear
from baton.engine.weights import LayerWeights


class NativeLayers:
    """The layers of a model whose products are all packed. Used from one thread."""

    def __init__(self, config: ModelConfig, layers: tuple[LayerWeights, ...]) -> None:
        self._config = config
        self._layers = layers  # whose memory the table points to
        rows = [
            _addresses(layer, window) for layer, window in zip(layers, config.sliding_windows, strict=True)
        ]
        self._table = torch.tensor(rows, dtype=torch.int64)
        heads = config.num_heads * config.head_dim
        kv_heads = config.num_kv_heads * config.head_dim
        self._widths = (config.hidden_size, heads + 2 * kv_heads, heads, config.intermediate_size)
        self._room = torch.empty(0, dtype=torch.bfloat16)

    @classmethod
    def of(cls, config: ModelConfig, layers: tuple[LayerWeights, ...]) -> NativeLayers | None:
        """None where a product is plain torch's."""
        return cls(config, layers) if all(map(_is_packed, layers)) else None

    def run(self, hidden: Tensor, cos: Tensor, sin: Tensor, kv: Tensor, attention: CpuAttention) -> None:
        """Replaces `hidden`, bfloat16 [T, hidden_size], by the last layer's output; writes keys and values into
        `kv`. cos, sin: see `RotaryEmbedding.cos_sin`; attention: told of this step's batch."""
        config, batch, tokens = self._config, attention.batch, len(hidden)
        assert hidden.is_contiguous(), f"rows are strided {hidden.stride()}"
        assert hidden.dtype == cos.dtype == kv.dtype == torch.bfloat16, (
            f"{hidden.dtype}, {cos.dtype}, {kv.dtype}"
        )
        native.run_layers(
            *(self._table.data_ptr(), len(self._layers), config.hidden_size),
            *(config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size),
            *(float32_bits(config.rms_norm_eps), hidden.data_ptr(), *self._buffers(tokens)),
            *(cos.data_ptr(), sin.data_ptr(), kv.data_ptr()),
            *(batch.query_start.data_ptr(), batch.context_lens.data_ptr()),
            *(batch.block_tables.data_ptr(), batch.block_tables.shape[1], batch.slots.data_ptr()),
            *(len(batch.query_tokens), tokens, batch.block_size, torch.get_num_threads()),
        )

    def _buffers(self, tokens: int) -> list[int]:
        """Addresses of `normed`, `qkv`, `attended` and `gated`, see `layers.h`; kept from step to step."""
        if len(self._room) < tokens * sum(self._widths):
            self._room = torch.empty(tokens * sum(self._widths), dtype=torch.bfloat16)
        starts = (sum(self._widths[:index]) for index in range(len(self._widths)))
        return [self._room.data_ptr() + start * tokens * self._room.itemsize for start in starts]


def _is_packed(layer: LayerWeights) -> bool:
    products = (layer.qkv, layer.output, layer.down)
    return isinstance(layer.gate, PackedGate) and all(isinstance(each, PackedLinear) for each in products)


def _addresses(layer: LayerWeights, window: int | None) -> list[int]:
    """The fields of `Layer` in `layers.h`."""
    packed = [each for each in (layer.qkv, layer.output, layer.down) if isinstance(each, PackedLinear)]
    qkv, output, down = (each.weight for each in packed)
    assert isinstance(layer.gate, PackedGate)
    return [
        layer.input_norm.data_ptr(),
        *(qkv.packed.data_ptr(), _address(qkv.bias)),
        *(_address(layer.query_norm), _address(layer.key_norm)),
        *(output.packed.data_ptr(), _address(output.bias)),
        layer.post_attention_norm.data_ptr(),
        layer.gate.weight.packed.data_ptr(),
        *(down.packed.data_ptr(), _address(down.bias)),
        window or 0,
    ]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
