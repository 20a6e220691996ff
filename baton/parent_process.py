"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Has the kernel kill this process, even a stopped one, when the thread that started it ends (prctl(2),
    PR_SET_PDEATHSIG). Where that has ended already nothing happens."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
