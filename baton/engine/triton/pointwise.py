"""What happens to each token between the matrix products: norm, rotation with the write to the pool, activation.

Computed in float32 and rounded where plain torch would round.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm(
    x, weight, output, x_stride, output_stride, width, epsilon, HEADS: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    token, head = row // HEADS, row % HEADS
    columns = tl.arange(0, WIDE)
    is_column = columns < width
    wide = tl.load(x + token * x_stride + head * width + columns, mask=is_column, other=0.0).to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    scale = tl.load(weight + columns, mask=is_column, other=0.0)
    scaled = scale.to(tl.float32) * wide.to(scale.dtype).to(tl.float32)
    tl.store(output + token * output_stride + head * width + columns, scaled.to(scale.dtype), mask=is_column)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, output: Tensor | None = None) -> Tensor:
    """As `baton.engine.kernels.rms_norm`."""
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device) if output is None else output
    heads, width = x.shape[1] if x.dim() == 3 else 1, x.shape[-1]
    _rms_norm[(len(x) * heads,)](
        *(x, weight, output, x.stride(0), output.stride(0), width, epsilon),
        HEADS=heads,
        WIDE=triton.next_power_of_2(width),
        num_warps=8 if width > 2048 else 4,
    )
    return output


@triton.jit
def _rotate_and_store(
    heads,
    cos,
    sin,
    kv,
    slots,
    token_stride,
    block_stride,
    layer_offset,
    query_heads,
    kv_heads,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """One head of one token; the rotation pairs dimension i with i + head_dim / 2."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, HALF)
    is_dim = dims < HEAD_DIM // 2
    place = heads + token * token_stride + head * HEAD_DIM + dims
    first = tl.load(place, mask=is_dim, other=0.0)
    second = tl.load(place + HEAD_DIM // 2, mask=is_dim, other=0.0)
    if ROTATE:
        if head < query_heads + kv_heads:
            c = tl.load(cos + token * (HEAD_DIM // 2) + dims, mask=is_dim, other=0.0).to(tl.float32)
            s = tl.load(sin + token * (HEAD_DIM // 2) + dims, mask=is_dim, other=0.0).to(tl.float32)
            x, y = first.to(tl.float32), second.to(tl.float32)
            first, second = (x * c - y * s).to(first.dtype), (y * c + x * s).to(first.dtype)
            tl.store(place, first, mask=is_dim)
            tl.store(place + HEAD_DIM // 2, second, mask=is_dim)
    slot = tl.load(slots + token)
    if (head >= query_heads) & (slot >= 0):
        is_value = head >= query_heads + kv_heads
        kv_head = head - query_heads - tl.where(is_value, kv_heads, 0)
        row = tl.where(is_value, BLOCK_SIZE, 0) + slot % BLOCK_SIZE
        target = (
            kv
            + (slot // BLOCK_SIZE) * block_stride
            + layer_offset
            + (row * kv_heads + kv_head) * HEAD_DIM
            + dims
        )
        tl.store(target, first, mask=is_dim)
        tl.store(target + HEAD_DIM // 2, second, mask=is_dim)


def rotate_and_store(
    heads: Tensor, angles: tuple[Tensor, Tensor] | None, kv: Tensor, layer: int, slots: Tensor
) -> None:
    """Rotates queries and keys in place and writes keys and values to their slots; a slot below 0 is nowhere.

    heads: [T, H + 2 KV, D], all query heads, then keys, then values. angles: cosine and sine [T, 1, D / 2]; None
    where they are rotated already. kv: [num_blocks, layers, 2, block_size, KV, D]. slots: int64 [T].
    """
    _, _, _, block_size, kv_heads, head_dim = kv.shape
    tokens, count, _ = heads.shape
    cos, sin = angles or (heads, heads)
    _rotate_and_store[(tokens, count)](
        *(heads, cos, sin, kv, slots, heads.stride(0), kv.stride(0), layer * kv.stride(1)),
        *(count - 2 * kv_heads, kv_heads),
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_SIZE=block_size,
        ROTATE=angles is not None,
        num_warps=1,
    )


@triton.jit
def _silu_times(gate_up, output, width, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=is_column, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=is_column, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = silu.to(tl.float32) * up.to(tl.float32)
    tl.store(output + row * width + columns, product.to(gate.dtype), mask=is_column)


def silu_times(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [T, 2 width], contiguous: [T, width]."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    _silu_times[(tokens, triton.cdiv(width, 1024))](gate_up, output, width, COLUMNS=1024)
    return output
