"""The one decoder behind every family: Llama, Mistral, Qwen2, Qwen3. Plain functions over typed weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.engine import kernels
from baton.engine.attention.base import AttentionBackend
from baton.engine.attention.cpu import CpuAttention
from baton.engine.checkpoint import Checkpoint
from baton.engine.model_config import ModelConfig
from baton.engine.native_layers import NativeLayers
from baton.engine.parallel import WHOLE, Collective, Shard
from baton.engine.rope import RotaryEmbedding
from baton.engine.weights import DecoderWeights, LayerWeights, WeightLoader


class CausalLM:
    """Weights on one device and the pass over them. Activations have the dtype of the weights."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights, device: torch.device) -> None:
        self.config = config
        self._weights = weights
        self._native_layers = NativeLayers.of(config, weights.layers)
        self._rope = RotaryEmbedding(config.rope, device)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        device: str | torch.device = "cpu",
        shard: Shard = WHOLE,
        collective: Collective | None = None,
    ) -> CausalLM:
        """Loads the weights of the folder that `config` was read from, those of one shard where there are more."""
        target = torch.device(device)
        loader = WeightLoader(Checkpoint(config.folder), config.dtype, target, shard, collective)
        return cls(shard.config(config), loader.decoder(config), target)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        prompt_tokens: Tensor,
        kv: Tensor,
        attention: AttentionBackend,
    ) -> Tensor:
        """The last layer's output [T, hidden_size] of T tokens; writes their keys and values into `kv`.

        token_ids, positions, prompt_tokens: int64 [T]; kv: see `KVPool.kv`; attention: told of this step's
        batch by `begin_step`.
        """
        hidden = F.embedding(token_ids, self._weights.embedding)
        cos, sin = self._rope.cos_sin(positions, prompt_tokens, hidden.dtype)
        if self._native_layers is not None and isinstance(attention, CpuAttention):
            self._native_layers.run(hidden, cos, sin, kv, attention)
            return hidden
        for index, layer in enumerate(self._weights.layers):
            heads = self._heads(layer, self._norm(hidden, layer.input_norm))
            window = self.config.sliding_windows[index]
            attended = attention.rotate_and_attend(heads, cos, sin, kv, index, window)
            hidden = layer.output.add_to(hidden, attended.flatten(1))
            hidden = layer.down.add_to(hidden, layer.gate(self._norm(hidden, layer.post_attention_norm)))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits, float32 [R, vocab_size], of R rows of `forward`'s output."""
        assert self._weights.lm_head is not None, "only rank 0 computes logits"
        return self._weights.lm_head(self._norm(hidden, self._weights.final_norm))

    def _heads(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        """Queries, keys and values, [T, num_heads + 2 * num_kv_heads, head_dim], not rotated yet."""
        config = self.config
        heads = layer.qkv(hidden).view(len(hidden), -1, config.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            query = heads[:, : config.num_heads]
            key = heads[:, config.num_heads : config.num_heads + config.num_kv_heads]
            kernels.rms_norm(query, layer.query_norm, config.rms_norm_eps, query)
            kernels.rms_norm(key, layer.key_norm, config.rms_norm_eps, key)
        return heads

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return kernels.rms_norm(x, weight, self.config.rms_norm_eps)
