"""Which cores a process may run on, and how `baton up` shares them out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from baton.errors import ConfigError

_MAX_CORES = 8192
"""Linux's own limit."""


def available_cores() -> list[int]:
    """Those that this process may run on, in order."""
    return sorted(os.sched_getaffinity(0))


def read_cores(text: str) -> set[int]:
    """As `taskset -c` takes them: "0-3,8". Raises ConfigError where it is no such list, or where this process may
    not run on any of them."""
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and int(end) < _MAX_CORES for end in ends):
            raise ConfigError(f"{text!r} is no list of cores such as 0-3,8", field="cpus")
        cores.update(range(int(ends[0]), int(ends[1]) + 1))
    if not cores & set(available_cores()):
        raise ConfigError(
            f"none of the cores {text} is among the {available_cores()} there are", field="cpus"
        )
    return cores


def share_out(cores: Sequence[int], processes: Mapping[str, int]) -> dict[str, str]:
    """For each worker of so many processes cores of its own, as many for each process, neighbours together; what is
    left over anybody may use. Nothing where a process would be left without."""
    each = len(cores) // sum(processes.values())
    shares = {}
    start = 0
    for worker, count in processes.items():
        own = cores[start : start + count * each]
        start += len(own)
        shares[worker] = ",".join(map(str, own))
    return shares if each else {}
