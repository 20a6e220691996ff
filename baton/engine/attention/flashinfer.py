"""Attention on a GPU by FlashInfer (https://arxiv.org/abs/2501.01005), where it is installed; only by name.

Keys and values are rotated and written by Triton's kernel, as with `triton`. Steps are not recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBatch
from baton.engine.attention.stored_by_triton import HAS_TRITON, WITHOUT_TRITON, StoredByTriton
from baton.engine.device_copy import upload

IS_INSTALLED = find_spec("flashinfer") is not None

if IS_INSTALLED and HAS_TRITON:
    import flashinfer

HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
_WORKSPACE_BYTES = 128 << 20
"""What FlashInfer asks for: the parts of keys that are split among processors are joined there."""


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """A batch as FlashInfer takes it, all int32: rows of a ragged table one behind the other.

    On the host: query_start [B + 1], of the sequences' new tokens; page_start [B + 1], of their blocks;
    last_page_tokens [B], tokens in the last block of each. On the device: pages [page_start[B]], block ids.
    """

    query_start: Tensor
    page_start: Tensor
    last_page_tokens: Tensor
    pages: Tensor

    @classmethod
    def of(cls, batch: AttentionBatch) -> Pages:
        size = batch.block_size
        counts = [-(-tokens // size) for tokens in batch.context_tokens]
        sequences = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        page_start = torch.tensor([0, *accumulate(counts)])
        places = torch.arange(len(sequences)) - page_start[sequences]
        at = upload(torch.stack((sequences, places)), batch.block_tables.device)
        last = [
            tokens - (count - 1) * size for tokens, count in zip(batch.context_tokens, counts, strict=True)
        ]
        return cls(
            torch.tensor([0, *accumulate(batch.query_tokens)], dtype=torch.int32),
            page_start.int(),
            torch.tensor(last, dtype=torch.int32),
            batch.block_tables[at[0], at[1]],
        )


class FlashInferAttention(StoredByTriton):
    """One launch for all rows, single tokens and prompts alike; planned once a step for each width of window."""

    name: ClassVar[str] = "flashinfer"

    def __init__(self) -> None:
        self._workspace: Tensor | None = None
        self._wrappers: dict[int | None, Any] = {}

    @classmethod
    def hindrance(cls, device: torch.device, head_dim: int, dtype: torch.dtype) -> str | None:
        if not IS_INSTALLED:
            return "needs the package flashinfer-python (pip install 'baton[flashinfer]')"
        if not HAS_TRITON:
            return WITHOUT_TRITON
        if device.type != "cuda":
            return f"does not run on {device}"
        if head_dim not in HEAD_DIMS:
            return f"takes heads of {', '.join(map(str, HEAD_DIMS))} dimensions, not {head_dim}"
        if dtype not in DTYPES:
            return f"takes bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
        return None

    def begin_step(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._pages = Pages.of(batch)
        self._planned: set[int | None] = set()

    def _attend(self, query: Tensor, kv: Tensor, layer: int, sliding_window: int | None) -> Tensor:
        if sliding_window not in self._planned:
            self._plan(query.shape[1], kv, sliding_window)
            self._planned.add(sliding_window)
        attended: Tensor = self._wrappers[sliding_window].run(query.contiguous(), kv[:, layer])
        return attended

    def _plan(self, heads: int, kv: Tensor, window: int | None) -> None:
        """FlashInfer reads the lengths on the host, so planning does not wait for the device."""
        if self._workspace is None:
            self._workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=kv.device)
        if window not in self._wrappers:
            self._wrappers[window] = flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
        _, _, _, block_size, kv_heads, head_dim = kv.shape
        pages = self._pages
        self._wrappers[window].plan(
            *(pages.query_start, pages.page_start, pages.pages, pages.last_page_tokens),
            *(heads, kv_heads, head_dim, block_size),
            causal=True,
            window_left=-1 if window is None else window - 1,
            q_data_type=kv.dtype,
        )
