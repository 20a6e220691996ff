"""Matrix products with bfloat16 weights that are packed once, in native code, on CPUs with AVX512-BF16.

Such a product adds a residual, or applies the gate, while its sums are still in registers; a product of few rows
reads the weights once, as fast as memory gives them. Everywhere else `make` and its like give the plain form.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from baton.engine.kernels import are_built, native
from baton.engine.linear import Gate, GatedLinear, Head, Linear, LinearHead, Product
from baton.engine.weight_memory import WeightMemory

PANEL = 64
"""Columns of the result that lie together in a packed weight; the last panel is filled up with zeros."""


class Ending(IntEnum):
    """What becomes of the sums; see `Ending` in `linear.h`."""

    PLAIN = 0
    RESIDUAL = 1
    FLOAT_SUMS = 2
    SILU_GATED = 3


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """packed: bfloat16 [panels, in / 2, PANEL, 2]. bias: float32 [columns] or None."""

    packed: Tensor
    columns: int
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, memory: WeightMemory) -> PackedWeight:
        """weight: bfloat16 [columns, in], in even; bias: [columns] or None."""
        columns, inputs = weight.shape
        weight = weight.contiguous()
        packed = memory.empty((-(-columns // PANEL), inputs // 2, PANEL, 2), torch.bfloat16)
        native.pack(weight.data_ptr(), packed.data_ptr(), columns, inputs, torch.get_num_threads())
        return cls(packed, columns, None if bias is None else bias.float())

    def multiply(self, x: Tensor, output: Tensor, ending: Ending, residual: Tensor | None = None) -> Tensor:
        """x: bfloat16 [T, in]. Fills and returns `output`."""
        inputs = 2 * self.packed.shape[1]
        assert x.dtype == torch.bfloat16, f"a product of {x.dtype}"
        assert x.shape[1] == inputs, f"{x.shape[1]} inputs, not {inputs}"
        assert x.is_contiguous(), f"rows are strided {x.stride()}"
        native.multiply(
            *(x.data_ptr(), self.packed.data_ptr(), 0 if self.bias is None else self.bias.data_ptr()),
            *(0 if residual is None else residual.data_ptr(), output.data_ptr()),
            *(len(x), inputs, self.columns, ending, torch.get_num_threads()),
        )
        return output


@dataclass(frozen=True, slots=True)
class PackedLinear:
    weight: PackedWeight

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight.multiply(x, x.new_empty(len(x), self.weight.columns), Ending.PLAIN)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        assert residual.is_contiguous(), f"rows are strided {residual.stride()}"
        return self.weight.multiply(x, torch.empty_like(residual), Ending.RESIDUAL, residual)


@dataclass(frozen=True, slots=True)
class PackedGate:
    """Each panel has as many columns of the gate, then the same columns of the up projection."""

    weight: PackedWeight

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight.multiply(x, x.new_empty(len(x), self.weight.columns // 2), Ending.SILU_GATED)


@dataclass(frozen=True, slots=True)
class PackedHead:
    weight: PackedWeight

    def __call__(self, x: Tensor) -> Tensor:
        logits = torch.empty((len(x), self.weight.columns), dtype=torch.float32)
        return self.weight.multiply(x, logits, Ending.FLOAT_SUMS)


def product(linear: Linear, memory: WeightMemory) -> Product:
    """`linear`, packed into `memory` where that can be."""
    if not _is_packable(linear.weight):
        return linear
    return PackedLinear(PackedWeight.of(linear.weight, linear.bias, memory))


def gate(linear: Linear, memory: WeightMemory) -> Gate:
    """linear: see `GatedLinear`."""
    half = PANEL // 2
    width, inputs = len(linear.weight) // 2, linear.weight.shape[1]
    if linear.bias is not None or width % half or not _is_packable(linear.weight):
        return GatedLinear(linear)
    panels = linear.weight.view(2, width // half, half, inputs).transpose(0, 1)
    return PackedGate(PackedWeight.of(panels.reshape(2 * width, inputs), None, memory))


def head(weight: Tensor, memory: WeightMemory) -> Head:
    """weight: [vocab_size, hidden_size]."""
    return PackedHead(PackedWeight.of(weight, None, memory)) if _is_packable(weight) else LinearHead(weight)


def _is_packable(weight: Tensor) -> bool:
    return (
        are_built()
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.shape[1] % 2 == 0
        and native.has_bfloat16_products()
    )
