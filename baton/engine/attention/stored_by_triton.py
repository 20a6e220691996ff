"""What backends on a GPU share: Triton's kernel rotates keys and writes them and the values, whoever attends."""

from __future__ import annotations

from abc import abstractmethod
from importlib.util import find_spec

import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBackend, AttentionBatch

HAS_TRITON = find_spec("triton") is not None
"""Torch for CPUs comes without it."""

if HAS_TRITON:
    from baton.engine.triton import pointwise

WITHOUT_TRITON = "needs the package triton (pip install 'baton[gpu]')"


class StoredByTriton(AttentionBackend):
    _batch: AttentionBatch

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        heads = torch.cat((query, key, value), dim=1)
        pointwise.rotate_and_store(heads, None, kv, layer, self._batch.slots)
        return self._attend(query, kv, layer, sliding_window)

    def rotate_and_attend(
        self, heads: Tensor, cos: Tensor, sin: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        pointwise.rotate_and_store(heads, (cos, sin), kv, layer, self._batch.slots)
        return self._attend(heads[:, : heads.shape[1] - 2 * kv.shape[4]], kv, layer, sliding_window)

    @abstractmethod
    def _attend(self, query: Tensor, kv: Tensor, layer: int, sliding_window: int | None) -> Tensor:
        """As `attend`, of keys and values that are written: `query` is rotated, and may be a view."""
        ...
