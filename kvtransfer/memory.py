"""Pools that another process on this host may map."""

from __future__ import annotations

import fcntl
import mmap
import os

import torch

from baton.kvtransfer.base import KVMemory
from baton.kvtransfer.errors import SchemeUnavailable


def shareable_memory(num_blocks: int, block_bytes: int) -> KVMemory:
    """A zeroed pool in a memory file (memfd_create(2)) that leaves no trace in any file system.

    The file is sealed against shrinking, so that a process that maps it can never be killed by reading it.
    The caller closes `fd`; the memory itself lives as long as the tensor.
    """
    size_bytes = num_blocks * block_bytes
    fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        require_sealed(fd, size_bytes)
        blocks = torch.frombuffer(mmap.mmap(fd, size_bytes), dtype=torch.uint8)
    except BaseException:
        os.close(fd)
        raise
    return KVMemory(blocks.view(num_blocks, block_bytes), fd)


def require_sealed(fd: int, size_bytes: int) -> None:
    """Makes sure that the memory file holds `size_bytes` and never fewer.

    Raises SchemeUnavailable where it is too small, or neither sealed against shrinking nor sealable.
    """
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        raise SchemeUnavailable(
            f"the pool's file cannot be sealed against shrinking: {error.strerror}"
        ) from error
    file_bytes = os.fstat(fd).st_size
    if file_bytes < size_bytes:
        raise SchemeUnavailable(f"the pool's file has {file_bytes} bytes, fewer than its {size_bytes}")


def map_read_only(fd: int, size_bytes: int) -> mmap.mmap:
    """Maps a file that `require_sealed` accepted. Raises SchemeUnavailable where no mapping can be had."""
    try:
        return mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise SchemeUnavailable(f"mapping {size_bytes} bytes of the peer's pool: {error.strerror}") from error
