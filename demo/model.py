"""A Llama in as few lines as training needs: no cache, no padding, weights named as published ones are.

Shapes: B rows, T tokens a row, H heads, D = 32 numbers a head.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the demo model: 2.7 million parameters, so that bf16 weights take 5.5 MB."""

    vocab_size: int = 3072
    hidden_size: int = 192
    intermediate_size: int = 576
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (RoFormer, arXiv:2104.09864) on [B, H, T, D], halves layout."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sizes = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
        self.head_dim = shape.head_dim
        wide, narrow = (heads * shape.head_dim for heads in self.sizes[:2])
        self.q_proj = nn.Linear(shape.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(x, weight).view(rows, tokens, sum(self.sizes), self.head_dim).transpose(1, 2)
        q, k, v = torch.split(heads, self.sizes, dim=1)
        out = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, attn_mask=mask, enable_gqa=True
        )
        return typing.cast(Tensor, self.o_proj(out.transpose(1, 2).reshape(rows, tokens, -1)))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, dim=-1)
        return typing.cast(Tensor, self.down_proj(F.silu(gate) * up))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return typing.cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """The stack without its head: the head shares the embedding's weights (see `loss.py`)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(
                    weight, std=0.02 / (2 * self.shape.num_hidden_layers) ** 0.5 if deep else 0.02
                )

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Final hidden states [B, T, hidden] of token ids [B, T] at positions [B, T].

        `mask` [B, 1, T, T] is true where the row's token may look at the column's.
        """
        half = torch.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        angles = positions[:, None, :, None] * self.shape.rope_theta**-half
        x = self.embed_tokens(tokens)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return typing.cast(Tensor, self.norm(x))
