"""A contender of a benchmark in a process of its own, asked and answered a JSON line at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class ContenderProcess:
    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        is_quiet: bool = False,
    ) -> None:
        """name: for messages. environment: beside this process's own. is_quiet: its stderr is thrown away."""
        self.name = name
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_quiet else None,
            text=True,
            env={**inherited, **(environment or {})},
        )

    def ask(self, question: object) -> list[float]:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.read()

    def read(self) -> list[float]:
        """The next answer. Ends the benchmark where the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.name} ended with status {self._process.wait()} in the middle of its work"
            )
        seconds: list[float] = json.loads(line)
        return seconds

    def close(self) -> None:
        """Ends it the hard way, which is all that is left to do: over TCP, UCX can take minutes to close."""
        self._process.kill()
        self._process.communicate()
