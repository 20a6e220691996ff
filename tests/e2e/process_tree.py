"""Processes as Linux knows them, to see that none is left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STATE, _PARENT, _STARTED_AT = 0, 1, 19  # fields of /proc/PID/stat behind the command's name


@dataclass(frozen=True, slots=True)
class Process:
    """started_at: clock ticks since boot, which tells a process from a later one of the same id."""

    pid: int
    started_at: int

    @property
    def is_alive(self) -> bool:
        fields = _stat(self.pid)
        return fields is not None and fields[_STATE] != "Z" and int(fields[_STARTED_AT]) == self.started_at

    @property
    def command(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return "(has ended)"


def descendants(pid: int) -> list[Process]:
    """The processes that `pid` started, that those started, and so on."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            child = Process(int(entry.name), int(fields[_STARTED_AT]))
            children.setdefault(int(fields[_PARENT]), []).append(child)
    found = list(children.get(pid, []))
    for process in found:  # grows while it is walked
        found.extend(children.get(process.pid, []))
    return found


def shared_memory() -> set[str]:
    """Names of the shared memory objects of this machine."""
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
