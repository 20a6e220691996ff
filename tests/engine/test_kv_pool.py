"""The pool's memory: its layout, who may map it, what it costs, and that nothing of it stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baton.engine.kv_pool import KVPool
from baton.engine.memory import available_bytes
from baton.errors import ConfigError


def make_pool(num_blocks: int = 8, *, shareable: bool = True) -> KVPool:
    return KVPool(num_blocks, 4, 3, 2, 8, torch.bfloat16, shareable=shareable)


@pytest.fixture(params=[True, False], ids=["shareable", "private"])
def pool(request: pytest.FixtureRequest) -> Iterator[KVPool]:
    pool = make_pool(shareable=request.param)
    yield pool
    pool.close()


def test_one_block_is_one_contiguous_region(pool: KVPool) -> None:
    pool.kv[5].fill_(1.5)
    assert pool.kv.shape == (8, 3, 2, 4, 2, 8)
    assert pool.block_bytes == 3 * 2 * 4 * 2 * 8 * 2
    assert pool.bytes_view.shape == (8, pool.block_bytes)
    assert torch.equal(pool.bytes_view[5].view(torch.bfloat16), torch.full((384,), 1.5).bfloat16())
    assert not pool.bytes_view[4].any()
    assert not pool.bytes_view[6].any()


def test_copy_block_copies_all_layers_and_nothing_else(pool: KVPool) -> None:
    pool.kv[1].normal_()
    pool.copy_block(1, 6)
    assert torch.equal(pool.kv[6], pool.kv[1])
    assert not pool.bytes_view[[0, 2, 3, 4, 5, 7]].any()


def test_another_process_reads_and_writes_the_same_memory() -> None:
    pool = make_pool()
    assert pool.fd is not None
    pool.kv[2].fill_(3.0)
    program = (
        "import mmap, sys\n"
        "fd, block_bytes = map(int, sys.argv[1:])\n"
        "memory = mmap.mmap(fd, 8 * block_bytes)\n"
        "memory[7 * block_bytes : 8 * block_bytes] = memory[2 * block_bytes : 3 * block_bytes]\n"
    )
    arguments = [sys.executable, "-c", program, str(pool.fd), str(pool.block_bytes)]
    subprocess.run(arguments, pass_fds=[pool.fd], check=True)
    assert torch.equal(pool.kv[7], pool.kv[2])
    pool.close()


def test_nobody_can_shrink_the_memory_under_a_mapping() -> None:
    pool = make_pool()
    assert pool.fd is not None
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, 0)
    pool.close()


def test_pages_are_taken_when_first_written() -> None:
    pool = make_pool(num_blocks=4096)
    assert pool.fd is not None
    assert os.fstat(pool.fd).st_blocks == 0
    pool.kv[17].fill_(1.0)
    assert 0 < os.fstat(pool.fd).st_blocks * 512 < 16 * pool.block_bytes + 8192
    pool.close()


def mapped_pools() -> set[str]:
    """The mappings of pools in this process: an engine of another test may not have been collected yet."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "baton-kv" in line}


def test_close_gives_the_memory_file_back_and_may_be_repeated() -> None:
    before = mapped_pools()
    pool = make_pool()
    assert mapped_pools() > before
    descriptor = pool.fd
    assert descriptor is not None
    pool.close()
    pool.close()
    assert pool.fd is None
    assert mapped_pools() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_private_pool_has_no_descriptor() -> None:
    assert make_pool(shareable=False).fd is None


def test_a_pool_larger_than_memory_is_refused_with_both_figures() -> None:
    free_bytes = available_bytes(torch.device("cpu"))
    num_blocks = 2 * free_bytes // 768
    with pytest.raises(ConfigError, match=rf"need {num_blocks * 768} bytes, but \d+ are available") as caught:
        make_pool(num_blocks)
    assert caught.value.field == "kv_blocks"


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_blocks 0 is below 1"):
        make_pool(0)
