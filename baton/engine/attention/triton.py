"""Attention on a GPU by Triton kernels (`baton.engine.triton`): straight from the pool's blocks."""

from __future__ import annotations

import os
from typing import ClassVar

import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBatch
from baton.engine.attention.stored_by_triton import HAS_TRITON, WITHOUT_TRITON, StoredByTriton
from baton.engine.device_copy import upload

if HAS_TRITON:
    from baton.engine.triton import attention as kernels

MAX_HEAD_DIM = 256
_PROMPT_ROWS = 64
"""Rows of a program's tile in a prompt, query heads of one key head included."""
_MIN_ROWS = 16
"""What the matrix units take at least."""
_MAX_SPLITS = 32
_MIN_KEYS_A_SPLIT = 256
_INTERPRETED_PROCESSORS = 8


def is_interpreted() -> bool:
    """Whether kernels run on the CPU, as Triton's own variable says."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class TritonAttention(StoredByTriton):
    """Single tokens and prompts are two launches of one kernel. Every tensor stays on the device; tiles are planned
    on the host from the lengths that the batch holds there."""

    name: ClassVar[str] = "triton"
    is_recordable: ClassVar[bool] = True

    @classmethod
    def hindrance(cls, device: torch.device, head_dim: int, dtype: torch.dtype) -> str | None:
        if not HAS_TRITON:
            return WITHOUT_TRITON
        if head_dim > MAX_HEAD_DIM:
            return f"takes heads of at most {MAX_HEAD_DIM} dimensions, not {head_dim}"
        if device.type == "cpu" and is_interpreted():
            return None
        if device.type != "cuda":
            return f"does not run on {device}"
        return None

    def begin_step(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._plan: list[kernels.Tiles] | None = None

    def _attend(self, query: Tensor, kv: Tensor, layer: int, sliding_window: int | None) -> Tensor:
        batch = self._batch
        if self._plan is None:
            self._plan = _plan(batch, query.shape[1] // kv.shape[4], kv.shape[4])
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for tiles in self._plan:
            kernels.attend(
                *(query, kv, layer, batch.query_start, batch.context_lens, batch.block_tables),
                *(tiles, sliding_window, output),
            )
        return output


def _plan(batch: AttentionBatch, group: int, kv_heads: int) -> list[kernels.Tiles]:
    """One launch for the single tokens, one for the prompts, as far as there are any."""
    device = batch.slots.device
    plan = []
    if batch.num_decodes:
        sequences = torch.arange(batch.num_decodes, dtype=torch.int32, device=device)
        rows = _rows(group)
        splits = _splits(batch.num_decodes * kv_heads, max(batch.context_tokens[: batch.num_decodes]), device)
        plan.append(kernels.Tiles(sequences, torch.zeros_like(sequences), 1, splits, rows))
    if batch.num_decodes < len(batch.query_tokens):
        tokens = max(1, _PROMPT_ROWS // group)
        places = [
            (sequence, first)
            for sequence in range(batch.num_decodes, len(batch.query_tokens))
            for first in range(0, batch.query_tokens[sequence], tokens)
        ]
        # The last tile of a prompt sees the most keys: it goes first, lest it runs alone at the end.
        sequence, first = upload(torch.tensor(places[::-1], dtype=torch.int32).T.contiguous(), device)
        plan.append(kernels.Tiles(sequence, first, tokens, 1, _rows(tokens * group)))
    return plan


def _rows(rows: int) -> int:
    return max(_MIN_ROWS, 1 << (rows - 1).bit_length())


def _splits(programs: int, context_tokens: int, device: torch.device) -> int:
    """So many that two programs run on each processor, and each still has a few tiles of keys."""
    processors = _INTERPRETED_PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = min(_MAX_SPLITS, 2 * processors // programs, context_tokens // _MIN_KEYS_A_SPLIT)
    return max(1, wanted)
