"""Pools that another process on this host may map."""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import ExitStack

import torch

from baton.kvtransfer.base import KVMemory
from baton.kvtransfer.errors import SchemeUnavailable


def shareable_memory(num_blocks: int, block_bytes: int) -> KVMemory:
    """A zeroed pool in a memory file; the caller closes `fd`, the memory itself lives as long as the tensor.

    Raises SchemeUnavailable where there is no such memory to be had.
    """
    fd, mapping = memory_file("baton-kv", num_blocks * block_bytes)
    return KVMemory(torch.frombuffer(mapping, dtype=torch.uint8).view(num_blocks, block_bytes), fd)


def memory_file(name: str, size_bytes: int) -> tuple[int, mmap.mmap]:
    """A fresh, zeroed memory file (memfd_create(2)), which leaves no trace in any file system: its descriptor, and
    all of it mapped.

    It is sealed against shrinking, so that a process that maps it can never be killed by reading it. Raises
    SchemeUnavailable where the system has none to give.
    """
    with ExitStack() as undo:
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, fd)
            os.ftruncate(fd, size_bytes)
            mapping = mmap.mmap(fd, size_bytes)
        except OSError as error:
            raise SchemeUnavailable(f"{size_bytes} bytes of shared memory: {error.strerror}") from error
        require_sealed(fd, size_bytes)
        undo.pop_all()
    return fd, mapping


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
