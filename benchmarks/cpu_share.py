"""A share of a core for a process: on one machine, four workers that do not take one another's time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 10_000
"""So short that a decode step of a few ms takes as much longer as the share has it, and is not over before the
quota is."""


class NoCpuQuota(Exception):
    """This machine lets nobody bound a process's CPU time here; the message says what stands against it."""


def quota_root(cgroups: Path = CGROUPS) -> Path:
    """The control group below which others with a quota may be made (Linux, version 2 or 1). Raises NoCpuQuota."""
    controllers = cgroups / "cgroup.controllers"
    if controllers.exists() and "cpu" in controllers.read_text().split():
        return cgroups
    for name in ("cpu", "cpu,cpuacct"):
        if (cgroups / name / "cgroup.procs").exists():
            return cgroups / name
    raise NoCpuQuota(f"{cgroups}: no control groups for cpu are mounted there, of version 1 or 2")


@contextmanager
def cpu_share(name: str, cores: float, cgroups: Path = CGROUPS) -> Iterator[Callable[[int], None]]:
    """Gives a function that holds a process, by its id, to `cores` of CPU time: itself, its threads, and whatever
    it starts later. Leave the context only once these have ended. Raises NoCpuQuota."""
    root = quota_root(cgroups)
    group = root / f"{name}-{os.getpid()}"
    try:
        if root == cgroups:
            (root / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
    except OSError as error:
        raise NoCpuQuota(f"{error.filename}: {error.strerror}; making control groups takes root") from error
    try:
        _limit(group, cores, is_unified=root == cgroups)
        yield lambda pid: _write(group / "cgroup.procs", str(pid))
    finally:
        group.rmdir()


def _limit(group: Path, cores: float, is_unified: bool) -> None:
    quota_us = round(cores * PERIOD_US)
    if is_unified:
        _write(group / "cpu.max", f"{quota_us} {PERIOD_US}")
    else:
        _write(group / "cpu.cfs_period_us", str(PERIOD_US))
        _write(group / "cpu.cfs_quota_us", str(quota_us))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise NoCpuQuota(f"{path}: {text!r} was not taken: {error.strerror}") from error
