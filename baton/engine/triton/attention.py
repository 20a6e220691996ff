"""Paged attention: one kernel for prompts and for single tokens, its keys split where there are too few queries.

A program takes the query heads of one key head over a tile of one sequence's new tokens, so that keys and values
are read once for a whole group, and meets the keys a tile at a time, carrying the softmax along (FlashAttention-2,
https://arxiv.org/abs/2307.08691). With few programs the keys of each are shared out among several, and `_merge`
joins what these found (Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Which queries a program takes. sequence, first: int32 [tiles], a sequence and the first of its new tokens.
    tokens: at most so many from there on. splits: programs that share the keys of a tile. rows: `tokens` times the
    query heads of a key head, rounded up to what the matrix units take."""

    sequence: Tensor
    first: Tensor
    tokens: int
    splits: int
    rows: int


@triton.jit
def _load(at, is_row, is_column, WIDEN: tl.constexpr):
    """A tile of what lies at `at`, zeros where it is not meant."""
    tile = tl.load(at, mask=is_row & is_column, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _seen_keys(
    position,
    is_row,
    context,
    window,
    split,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """The first key that this program meets, and the one behind its last."""
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, tl.min(tl.where(is_row, position, context)) + 1 - window)
    end = tl.max(tl.where(is_row, position + 1, 0))
    share = tl.cdiv(tl.cdiv(end - start, KEYS), SPLITS) * KEYS
    start += split * share
    return start, tl.minimum(end, start + share)


@triton.jit
def _weigh(q, k, position, keys, end, window, scale, peak, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr):
    """Weights of a tile of keys relative to each row's highest score so far, that score, and by how much what was
    weighed before has to fade."""
    scores = tl.dot(q, k, input_precision=PRECISION) * scale
    is_seen = (keys[None, :] < end) & (keys[None, :] <= position[:, None])
    if HAS_WINDOW:
        is_seen &= keys[None, :] > position[:, None] - window
    scores = tl.where(is_seen, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
    return tl.exp2(scores - base[:, None]), higher, tl.exp2(peak - base)


@triton.jit
def _attend(
    query,
    kv,
    output,
    partial,
    sums,
    query_start,
    context_lens,
    block_tables,
    tile_sequence,
    tile_first,
    query_stride,
    output_stride,
    block_stride,
    layer_offset,
    max_blocks,
    kv_heads,
    window,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(tile_sequence + tile)
    first_row = tl.load(query_start + sequence)
    new_tokens = tl.load(query_start + sequence + 1) - first_row
    context = tl.load(context_lens + sequence)

    rows, dims = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    token = tl.load(tile_first + tile) + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    row = (first_row + token).to(tl.int64)
    is_row = (rows // GROUP < TILE_TOKENS) & (token < new_tokens)
    is_dim = dims < HEAD_DIM
    position = context - new_tokens + token
    q_at = query + row[:, None] * query_stride + head[:, None] * HEAD_DIM + dims[None, :]
    q = _load(q_at, is_row[:, None], is_dim[None, :], WIDEN)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    table = block_tables + sequence.to(tl.int64) * max_blocks
    start, end = _seen_keys(position, is_row, context, window, split, KEYS, SPLITS, HAS_WINDOW)
    for begin in range(start, end, KEYS):
        keys = begin + tl.arange(0, KEYS)
        is_key = keys < end
        block = tl.load(table + keys // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        key_at = (
            kv + block * block_stride + layer_offset + (keys % BLOCK_SIZE * kv_heads + kv_head) * HEAD_DIM
        )
        k = _load(key_at[None, :] + dims[:, None], is_key[None, :], is_dim[:, None], WIDEN)
        weights, peak, fade = _weigh(q, k, position, keys, end, window, scale, peak, HAS_WINDOW, PRECISION)
        value_at = key_at + BLOCK_SIZE * kv_heads * HEAD_DIM
        v = _load(value_at[:, None] + dims[None, :], is_key[:, None], is_dim[None, :], WIDEN)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * fade + tl.sum(weights, 1)

    if SPLITS == 1:
        result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        at = output + row[:, None] * output_stride + head[:, None] * HEAD_DIM + dims[None, :]
        tl.store(at, result.to(output.dtype.element_ty), mask=is_row[:, None] & is_dim[None, :])
    else:
        at = (row * kv_heads * GROUP + head) * SPLITS + split
        tl.store(partial + at[:, None] * WIDTH + dims[None, :], mixed, mask=is_row[:, None])
        tl.store(sums + at * 2, peak, mask=is_row)
        tl.store(sums + at * 2 + 1, total, mask=is_row)


@triton.jit
def _merge(
    partial,
    sums,
    output,
    output_stride,
    heads,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
):
    """One query head of one token: what the programs that shared its keys found, each rescaled to one peak."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    splits, dims = tl.arange(0, PADDED_SPLITS), tl.arange(0, WIDTH)
    at = (row * heads + head) * SPLITS + splits
    is_split = splits < SPLITS
    peaks = tl.load(sums + at * 2, mask=is_split, other=float("-inf"))
    totals = tl.load(sums + at * 2 + 1, mask=is_split, other=0.0)
    peak = tl.max(peaks, 0)
    fades = tl.exp2(peaks - tl.where(peak == float("-inf"), 0.0, peak))
    mixed = tl.load(partial + at[:, None] * WIDTH + dims[None, :], mask=is_split[:, None], other=0.0)
    total = tl.sum(totals * fades, 0)
    result = tl.sum(mixed * fades[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    place = output + row * output_stride + head * HEAD_DIM + dims
    tl.store(place, result.to(output.dtype.element_ty), mask=dims < HEAD_DIM)


def attend(
    query: Tensor,
    kv: Tensor,
    layer: int,
    query_start: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    tiles: Tiles,
    window: int | None,
    output: Tensor,
) -> None:
    """Fills the rows of `output` [T, H, D] whose queries are in `tiles`, from what is in the pool already.

    query: [T, H, D], a token's heads in one piece. kv: [num_blocks, layers, 2, block_size, KV, D]. query_start,
    context_lens, block_tables: see `AttentionBatch`; a context of 0 gives rows of zeros.
    """
    _, _, _, block_size, kv_heads, head_dim = kv.shape
    heads, splits = query.shape[1], tiles.splits
    width = padded(head_dim)
    shape = (len(query), heads, splits, width) if splits > 1 else (1, 1, 1, 1)
    partial = torch.empty(shape, dtype=torch.float32, device=query.device)
    sums = torch.empty((*shape[:3], 2), dtype=torch.float32, device=query.device)
    _attend[(len(tiles.sequence), kv_heads, splits)](
        *(
            query,
            kv,
            output,
            partial,
            sums,
            query_start,
            context_lens,
            block_tables,
            tiles.sequence,
            tiles.first,
        ),
        *(query.stride(0), output.stride(0), kv.stride(0), layer * kv.stride(1), block_tables.shape[1]),
        *(kv_heads, window or 0, head_dim**-0.5 * LOG2_E),
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        WIDTH=width,
        BLOCK_SIZE=block_size,
        TILE_TOKENS=tiles.tokens,
        ROWS=tiles.rows,
        KEYS=64 if width <= 128 else 32,
        SPLITS=splits,
        HAS_WINDOW=window is not None,
        PRECISION="ieee" if kv.dtype == torch.float32 else "tf32",
        WIDEN=kv.device.type == "cpu"
        and kv.dtype == torch.bfloat16,  # the interpreter multiplies no bfloat16
        num_warps=8 if tiles.rows >= 128 else 4,
        num_stages=2,
    )
    if splits > 1:
        _merge[(len(query), heads)](
            *(partial, sums, output, output.stride(0), heads),
            HEAD_DIM=head_dim,
            WIDTH=width,
            SPLITS=splits,
            PADDED_SPLITS=triton.next_power_of_2(splits),
        )


def padded(head_dim: int) -> int:
    """What the matrix units take at least, and a power of two."""
    return max(16, int(triton.next_power_of_2(head_dim)))
