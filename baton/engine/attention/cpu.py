"""Attention on a CPU by native code (`baton/engine/csrc/attention.c`): straight from the pool's blocks, nothing
gathered, nothing masked as a whole, threads sharing tiles of queries.

A tile of queries meets its keys a few at a time and carries its softmax along ("Online normalizer calculation for
softmax", https://arxiv.org/abs/1805.02867; FlashAttention, https://arxiv.org/abs/2205.14135).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBackend, AttentionBatch
from baton.engine.kernels import KINDS, are_built, native

MAX_HEAD_DIM = 256


class CpuAttention(AttentionBackend):
    name: ClassVar[str] = "cpu"

    batch: AttentionBatch

    @classmethod
    def hindrance(cls, device: torch.device, head_dim: int, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"does not run on {device}"
        if not are_built():
            return "needs a C compiler where the package is installed"
        if head_dim > MAX_HEAD_DIM:
            return f"takes heads of at most {MAX_HEAD_DIM} dimensions, not {head_dim}"
        return None

    def begin_step(self, batch: AttentionBatch) -> None:
        self.batch = batch
        self._threads = torch.get_num_threads()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        batch = self.batch
        tokens, heads, head_dim = query.shape
        _, layers, _, block_size, kv_heads, _ = kv.shape
        output = torch.empty((tokens, heads, head_dim), dtype=kv.dtype)
        native.attend(
            *(query.data_ptr(), _token_stride(query, kv)),
            *(key.data_ptr(), _token_stride(key, kv)),
            *(value.data_ptr(), _token_stride(value, kv)),
            *(output.data_ptr(), kv.data_ptr()),
            *(batch.query_start.data_ptr(), batch.context_lens.data_ptr()),
            *(batch.block_tables.data_ptr(), batch.block_tables.shape[1], batch.slots.data_ptr()),
            *(len(batch.query_tokens), tokens, heads, kv_heads, head_dim, layers, layer, block_size),
            *(sliding_window or 0, KINDS[kv.dtype], self._threads),
        )
        return output


def _token_stride(heads: Tensor, kv: Tensor) -> int:
    """Elements from one token to the next; the heads of a token lie next to each other."""
    assert heads.dtype == kv.dtype, f"{heads.dtype} meets a pool of {kv.dtype}"
    assert heads.stride()[1:] == (heads.shape[2], 1), f"heads are strided {heads.stride()}"
    return heads.stride(0)
