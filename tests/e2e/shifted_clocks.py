"""Processes whose wall clocks a test sets while they run: `tests/tools/shifted_clock.c`, preloaded."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parents[1] / "tools" / "shifted_clock.c"


def build_shifted_clock(folder: Path) -> Path:
    """The library to preload; skips the test where it cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("setting a process's clock needs a C compiler")
    library = folder / "shifted_clock.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [compiler, *flags, "-o", library, _SOURCE, "-ldl"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"setting a process's clock needs glibc: {done.stderr}")
    return library


class ShiftedClock:
    """The wall clock of one process, or of several. `environment`: what they start with."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self._file.write_bytes(struct.pack("=q", 0))
        self.environment: Mapping[str, str] = {"LD_PRELOAD": f"{library}", "SHIFTED_CLOCK": f"{file}"}

    def jump_to(self, shift_s: int) -> None:
        """Ahead of the real time by so much from now on. In place, for the processes have mapped the file."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", shift_s))
