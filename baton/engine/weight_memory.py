"""Memory for weights that every step reads from end to end.

Asked for in large pieces on huge pages, of which the processor translates addresses 512 times less often; where the
kernel has none it is memory like any other.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

PIECE_BYTES = 64 << 20
_ALIGNMENT_BYTES = 64
"""A cache line."""


class WeightMemory:
    """Hands out tensors that lie one behind the other; a piece goes when the last of its tensors does."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros, on the CPU."""
        size_bytes = math.prod(shape) * dtype.itemsize
        room_bytes = -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if room_bytes > len(self._rest):
            self._rest = _piece(max(PIECE_BYTES, room_bytes))
        memory, self._rest = self._rest[:size_bytes], self._rest[room_bytes:]
        return memory.view(dtype).view(shape)


def _piece(size_bytes: int) -> Tensor:
    mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)
