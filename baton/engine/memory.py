"""How much memory a device can still give, and the error of one that gives no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from baton.errors import WorkerFailed

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class StepOutOfMemory(WorkerFailed):
    """A step did not fit into the memory that its device has beside weights and KV pool; it changed nothing."""


@contextmanager
def exhaustion_named() -> Iterator[None]:
    """Raises StepOutOfMemory for the different ways in which torch and Python say that memory is exhausted."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_of_cpu = "can't allocate memory" in str(error)  # torch has no class of its own for that
        if not (is_of_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)):
            raise
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise StepOutOfMemory(f"a step did not fit into memory: {reason}") from error


def available_bytes(device: torch.device) -> int:
    """Bytes that can be taken on `device` now: on a CPU the lesser of what the machine and what the container
    (cgroup v2) leaves, counting page cache as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine_bytes = _figures(MEMINFO)["MemAvailable:"] * 1024
    return min(machine_bytes, _cgroup_bytes(machine_bytes))


def _cgroup_bytes(unlimited_bytes: int) -> int:
    """What the container's limit leaves; `unlimited_bytes` where it has none."""
    limit_path = CGROUP / "memory.max"
    if not limit_path.exists() or (limit := limit_path.read_text().strip()) == "max":
        return unlimited_bytes
    used_bytes = int((CGROUP / "memory.current").read_text())
    page_cache_bytes = _figures(CGROUP / "memory.stat").get("inactive_file", 0)
    return int(limit) - used_bytes + page_cache_bytes


def _figures(path: Path) -> dict[str, int]:
    """The lines "name number …" of a file of the kernel."""
    return {name: int(number) for name, number, *_ in map(str.split, path.read_text().splitlines())}
