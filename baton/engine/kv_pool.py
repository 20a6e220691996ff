"""The memory of the KV cache: one contiguous region a block, so that a hand-off is a few large copies."""

from __future__ import annotations

import fcntl
import mmap
import os

import torch

from baton.engine.memory import available_bytes
from baton.errors import ConfigError


class KVPool:
    """`num_blocks` blocks of `block_size` tokens on one device.

    kv: [num_blocks, num_layers, 2 (key, value), block_size, num_kv_heads, head_dim]. bytes_view: the same
    memory, uint8 [num_blocks, block_bytes]. fd: on a CPU, if shareable, the descriptor of the memory file
    behind it, which another process may map: it has no name, so nothing stays behind however this process
    ends, and it is sealed, so nobody can shrink it under a mapping. Pages are taken when first written.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        shareable: bool = True,
    ) -> None:
        """Raises ConfigError naming bytes asked and available where the memory cannot be had."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = torch.device(device)
        self.fd: int | None = None
        shape = (num_blocks, num_layers, 2, block_size, num_kv_heads, head_dim)
        self.block_bytes = 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize
        size_bytes = num_blocks * self.block_bytes
        self._require_memory(size_bytes)
        if self.device.type == "cpu":
            memory = self._map(size_bytes, shareable)
        else:
            memory = torch.zeros(size_bytes, dtype=torch.uint8, device=self.device)
        self.bytes_view = memory.view(num_blocks, self.block_bytes)
        self.kv = memory.view(dtype).view(shape)

    def _require_memory(self, size_bytes: int) -> None:
        if self.num_blocks < 1:
            raise ConfigError(f"kv_blocks {self.num_blocks} is below 1", field="kv_blocks")
        free_bytes = available_bytes(self.device)
        if size_bytes > free_bytes:
            raise ConfigError(
                f"kv_blocks {self.num_blocks}: {self.num_blocks} KV blocks of {self.block_bytes} bytes need "
                f"{size_bytes} bytes, but {free_bytes} are available on {self.device}",
                field="kv_blocks",
            )

    def _map(self, size_bytes: int, shareable: bool) -> torch.Tensor:
        if shareable:
            self.fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        # The tensor keeps the mapping alive; it is unmapped with the last view of it.
        return torch.frombuffer(mmap.mmap(-1 if self.fd is None else self.fd, size_bytes), dtype=torch.uint8)

    def copy_block(self, source: int, target: int) -> None:
        """Copies all layers of block `source` over block `target`."""
        self.bytes_view[target].copy_(self.bytes_view[source])

    def clear_tail(self, block_id: int, tokens: int) -> None:
        """Zeroes what lies behind the first `tokens` tokens of a block."""
        self.kv[block_id, :, :, tokens:] = 0

    def close(self) -> None:
        """Gives the memory back, once nobody else holds a view of it. Safe to call twice."""
        self.kv = torch.empty(0)
        self.bytes_view = torch.empty(0, dtype=torch.uint8)
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
