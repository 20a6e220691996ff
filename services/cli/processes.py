"""Child processes that never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

from baton.parent_process import die_with_parent


class Child:
    """One process of the cluster, in a session of its own so that Ctrl-C reaches only the parent."""

    def __init__(self, name: str, arguments: Iterable[str], environment: Mapping[str, str]) -> None:
        """environment: the only BATON_ variables that the process sees; the parent's own options are not its."""
        self.name = name
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("BATON_")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "baton.cli", *arguments],
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def describe_end(self) -> str:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self.name} (process {self.pid}) {how}"

    def terminate(self) -> None:
        if self.exit_code is None:
            self._process.terminate()

    def kill(self) -> None:
        if self.exit_code is None:
            self._process.kill()

    def wait_or_kill(self, deadline_s: float) -> None:
        """Waits until `deadline_s` (monotonic clock), then ends the process for good."""
        try:
            self._process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.close()

    def close(self) -> None:
        """Of a process that has ended."""
        os.close(self.pidfd)
