"""Matrix products with a model's weights, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from baton.engine import kernels


class Product(Protocol):
    """y = x W^T + b with x [T, in] and y [T, out], in one dtype."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + y, a new tensor."""
        ...


class Gate(Protocol):
    """silu(x G^T) * (x U^T), with x [T, in] and a result [T, width]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Head(Protocol):
    """Logits, float32 [R, vocab_size], of x [R, hidden_size]."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Linear:
    """weight: [out, in]; bias: [out] or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual + self(x)


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """gate_up: rows of the gate, then of the up projection."""

    gate_up: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.silu_times(self.gate_up(x))


@dataclass(frozen=True, slots=True)
class LinearHead:
    """weight: [vocab_size, hidden_size]."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight).float()
