"""What happens to each token by itself between the matrix products: native code on a CPU, Triton on a GPU, else
plain torch.

The native module (`baton/engine/csrc`) is there where the package was installed with a C compiler.
"""

from __future__ import annotations

import struct
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.engine.rope import rotate

try:
    from baton.engine import native as native
except ImportError:  # installed where there was no compiler
    native = None  # type: ignore[assignment]

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What the native module computes with, and how it calls it."""


def are_built() -> bool:
    return native is not None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, output: Tensor | None = None) -> Tensor:
    """RMSNorm (https://arxiv.org/abs/1910.07467) of `x` [T, W] or [T, heads, W], in float32, scaled in its dtype.

    weight: [W], of the same dtype. output: where it goes, `x` itself even; None makes a new tensor.
    """
    if (triton := _triton(x)) is not None:
        return cast(Tensor, triton.rms_norm(x, weight, epsilon, output))
    if not are_built() or x.device.type != "cpu":
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        scaled = weight * wide.to(x.dtype)
        return scaled if output is None else output.copy_(scaled)
    output = torch.empty(x.shape, dtype=x.dtype) if output is None else output
    width, rows = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    assert weight.dtype == x.dtype, f"a weight of {weight.dtype} for {x.dtype}"
    native.norm(
        *(x.data_ptr(), weight.data_ptr(), output.data_ptr(), len(x) * rows, width, rows),
        *(
            _token_stride(x),
            _token_stride(output),
            float32_bits(epsilon),
            KINDS[x.dtype],
            torch.get_num_threads(),
        ),
    )
    return output


def rotate_in_place(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates `heads` [T, H, head_dim]; see `rope.rotate`."""
    if not are_built() or heads.device.type != "cpu":
        heads.copy_(rotate(heads, cos, sin))
        return
    assert heads.dtype == cos.dtype == sin.dtype, f"angles of {cos.dtype} for {heads.dtype}"
    tokens, count, head_dim = heads.shape
    native.rotate(
        *(heads.data_ptr(), cos.data_ptr(), sin.data_ptr(), tokens, _token_stride(heads), count, head_dim),
        *(KINDS[heads.dtype], torch.get_num_threads()),
    )


def silu_times(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [T, width], of [T, 2 width]."""
    if (triton := _triton(gate_up)) is not None:
        return cast(Tensor, triton.silu_times(gate_up))
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _triton(x: Tensor) -> ModuleType | None:
    return _triton_kernels() if x.device.type == "cuda" else None


@cache
def _triton_kernels() -> ModuleType | None:
    """Imported where a GPU first asks for them: a worker on a CPU starts without."""
    try:
        return import_module("baton.engine.triton.pointwise")
    except ImportError:
        return None


def _token_stride(x: Tensor) -> int:
    """Elements from one token to the next; what belongs to a token lies in one piece."""
    assert x[0].is_contiguous(), f"a token is strided {x.stride()}"
    return x.stride(0)


def float32_bits(value: float) -> int:
    """The bits of `value` as a float32, by which the native module takes it."""
    return int.from_bytes(struct.pack("<f", value), "little")
