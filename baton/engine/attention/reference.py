"""Attention in plain torch: gathers each context from the pool, then scaled_dot_product_attention.

Sequences in decode are gathered together, each padded to the longest with its own newest token and masked
there: so nothing foreign, not even a NaN, is ever multiplied.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.engine.attention.base import AttentionBackend, AttentionBatch


class _Context(NamedTuple):
    """The keys that some queries see. slots: int64, block id * block_size + offset. mask: bool, None where
    the plain causal triangle says it all."""

    slots: Tensor
    mask: Tensor | None


class _Plan(NamedTuple):
    """One step's contexts under one window: decodes, slots [D, L] and mask [D, 1, 1, L]; of each further
    sequence i, slots [L_i] and mask [queries, L_i]."""

    decodes: _Context | None
    prefills: tuple[_Context, ...]


class ReferenceAttention(AttentionBackend):
    name: ClassVar[str] = "reference"

    _batch: AttentionBatch

    @classmethod
    def hindrance(cls, device: torch.device, head_dim: int, dtype: torch.dtype) -> str | None:
        return None

    def begin_step(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._plans: dict[int | None, _Plan] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        batch = self._batch
        memory = _LayerMemory(kv, layer)
        memory.write(batch.slots, key, value)
        if sliding_window not in self._plans:
            self._plans[sliding_window] = _plan(batch, sliding_window)
        plan = self._plans[sliding_window]
        decode_out = []
        if plan.decodes is not None:
            decode_out.append(_decode(query[: batch.num_decodes], memory, plan.decodes))
        queries = torch.split(query[batch.num_decodes :], list(batch.query_tokens[batch.num_decodes :]))
        prefill_out = [
            _prefill(rows, memory, context) for rows, context in zip(queries, plan.prefills, strict=True)
        ]
        return torch.cat(decode_out + prefill_out)


class _LayerMemory:
    """One layer's keys and values in the pool, seen as rows of a token, num_kv_heads * head_dim long.

    Rows rather than a strided view of the layer: index_select and index_copy_ move whole rows ten times as
    fast as advanced indexing.
    """

    def __init__(self, kv: Tensor, layer: int) -> None:
        _, num_layers, _, self._block_size, self._num_kv_heads, self._head_dim = kv.shape
        self._rows = kv.view(-1, self._num_kv_heads * self._head_dim)
        self._block_rows = num_layers * 2 * self._block_size
        self._key_row = layer * 2 * self._block_size

    def _key_rows(self, slots: Tensor) -> Tensor:
        blocks = torch.div(slots, self._block_size, rounding_mode="floor")
        return blocks * (self._block_rows - self._block_size) + slots + self._key_row

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        rows = self._key_rows(slots)
        self._rows.index_copy_(0, rows, key.flatten(1))
        self._rows.index_copy_(0, rows + self._block_size, value.flatten(1))

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [num_kv_heads, L, head_dim] for slots [L], with a leading D for slots [D, L]."""
        rows = self._key_rows(slots).flatten()
        shape = (*slots.shape, self._num_kv_heads, self._head_dim)
        key = self._rows.index_select(0, rows).view(shape)
        value = self._rows.index_select(0, rows + self._block_size).view(shape)
        return key.transpose(-2, -3), value.transpose(-2, -3)


def _decode(query: Tensor, memory: _LayerMemory, context: _Context) -> Tensor:
    """query: [D, num_heads, head_dim]. The query heads of a key head take the place of its queries, so that
    keys and values are read once for all of them."""
    key, value = memory.read(context.slots)
    grouped = query.view(len(query), key.shape[1], -1, query.shape[-1])
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=context.mask).view_as(query)


def _prefill(query: Tensor, memory: _LayerMemory, context: _Context) -> Tensor:
    """query: [queries, num_heads, head_dim] of one sequence."""
    key, value = memory.read(context.slots)
    heads = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key[None],
        value[None],
        attn_mask=context.mask,
        is_causal=context.mask is None,
        enable_gqa=True,
    )
    return heads[0].transpose(0, 1)


def _plan(batch: AttentionBatch, window: int | None) -> _Plan:
    decodes = _plan_decodes(batch, window) if batch.num_decodes else None
    sequences = range(batch.num_decodes, len(batch.query_tokens))
    return _Plan(decodes, tuple(_plan_prefill(batch, sequence, window) for sequence in sequences))


def _plan_decodes(batch: AttentionBatch, window: int | None) -> _Context:
    longest = max(batch.context_tokens[: batch.num_decodes])
    seen = min(longest, window or longest)
    last = batch.context_lens[: batch.num_decodes, None].long() - 1
    first = torch.clamp(last + 1 - seen, min=0) if window else torch.zeros_like(last)
    positions = first + torch.arange(seen, device=last.device)
    tables = batch.block_tables[: batch.num_decodes]
    slots = _slots(tables, torch.minimum(positions, last), batch.block_size)
    return _Context(slots, (positions <= last)[:, None, None])


def _plan_prefill(batch: AttentionBatch, sequence: int, window: int | None) -> _Context:
    context, queries = batch.context_tokens[sequence], batch.query_tokens[sequence]
    start = context - queries
    first = max(0, start + 1 - window) if window else 0
    keys = torch.arange(first, context, device=batch.block_tables.device)
    slots = _slots(batch.block_tables[sequence : sequence + 1], keys[None], batch.block_size)[0]
    if start == 0 and (window is None or window >= context):
        return _Context(slots, None)
    own = keys[start - first :, None]
    mask = keys <= own
    if window:
        mask &= keys > own - window
    return _Context(slots, mask)


def _slots(tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Slots, int64 [B, L], of `positions` (int64 [B, L]) under block tables [B, max_blocks]."""
    blocks = torch.div(positions, block_size, rounding_mode="floor")
    return tables.long().gather(1, blocks) * block_size + positions % block_size
