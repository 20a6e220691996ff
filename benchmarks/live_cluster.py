"""`baton up` from its ready line to its end, for benchmarks that need a cluster of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_READY_PREFIX = "baton ready at "
_STOP_TIMEOUT_S = 30.0


@contextmanager
def running(flags: Sequence[str]) -> Iterator[str]:
    """The URL of a cluster with these options. Raises RuntimeError where it does not come up."""
    command = [sys.executable, "-P", "-m", "baton.cli", "up", "--port=0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith(_READY_PREFIX):
            raise RuntimeError(f"{' '.join(command)} ended before it was ready")
        yield line.removeprefix(_READY_PREFIX).strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_TIMEOUT_S)
        process.stdout.close()
