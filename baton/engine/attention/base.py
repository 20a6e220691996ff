"""The contract of an attention backend: paged causal attention over sequences of unequal length.

One step, in this order: the runner builds an `AttentionBatch` and calls `begin_step` once; the model calls
`attend` once a layer. `attend` writes the new keys and values into the pool before it attends, so that a
backend may do both in one kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baton.engine import kernels


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBatch:
    """Where the T new tokens of B sequences stand. Tensors are on the model's device; the tuples hold the
    same lengths on the host, so that no backend has to wait for the device to learn a shape.

    The first `num_decodes` sequences have one new token each. The tokens of sequence i are the rows
    query_start[i] to query_start[i + 1] and the last ones of its context.

    query_start: int32 [B + 1]. context_lens: int32 [B], tokens in the pool once this step's are written.
    block_tables: int32 [B, max_blocks]; row i lists the blocks of sequence i in order, 0 beyond its context.
    slots: int64 [T], block id * block_size + offset, where each new token's key and value go.
    query_tokens, context_tokens: B lengths each.
    """

    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    slots: Tensor
    num_decodes: int
    block_size: int
    query_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]


class AttentionBackend(ABC):
    """Used by one runner, from one thread."""

    name: ClassVar[str]
    is_recordable: ClassVar[bool] = False
    """Whether a step of single tokens may be recorded as a CUDA graph: nothing in it waits for the device, and it
    depends on the lengths on the host only through their largest."""

    @classmethod
    @abstractmethod
    def hindrance(cls, device: torch.device, head_dim: int, dtype: torch.dtype) -> str | None:
        """Why it cannot serve a model with such heads in `dtype` on `device`, as the end of a sentence; None where
        it can."""

    @abstractmethod
    def begin_step(self, batch: AttentionBatch) -> None:
        """Takes the batch that the following `attend` calls are about; plans what all layers share."""

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        """Writes `key` and `value` to the pool, then attends; returns [T, num_heads, head_dim].

        query: [T, num_heads, head_dim]; key, value: [T, num_kv_heads, head_dim]; rotated already, in the
        dtype of `kv` [num_blocks, num_layers, 2, block_size, num_kv_heads, head_dim]. Query head h reads key
        head h // (num_heads / num_kv_heads). Scores are scaled by head_dim ** -0.5; softmax is in float32.
        A token sees itself and what precedes it, with a window only the last `sliding_window` of those.
        Nothing but the tokens of a sequence's own context may influence its rows, whatever bits the unused
        slots of its blocks hold.
        """

    def rotate_and_attend(
        self, heads: Tensor, cos: Tensor, sin: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        """Rotates queries and keys in place (`rope.rotate`), then `attend`; a backend may do it in its own kernel.

        heads: [T, num_heads + 2 * num_kv_heads, head_dim]: queries, then keys, then values. cos, sin:
        [T, 1, head_dim / 2].
        """
        kv_heads = kv.shape[4]
        query, key, value = torch.split(heads, [heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        kernels.rotate_in_place(heads[:, :-kv_heads], cos, sin)
        return self.attend(query, key, value, kv, layer, sliding_window)
