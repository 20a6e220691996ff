"""How long a worker takes from its process's start until a request can be served, and where that time goes.

`python benchmarks/startup.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import engine_model
import live_cluster
import rows
from rich.console import Console
from rows import Row

from baton import demo_model

EXAMPLES = """
examples:
  python benchmarks/startup.py --quick
  python benchmarks/startup.py --json startup.json

what is measured, on a warm disk, of a Llama of 135M parameters in bfloat16 with random weights:
  ready: from the start of a decode worker's process until the router beside it answers 200 at /health; the router
  starts at the same time and on the same cores
  imports: a Python process that imports a worker's modules and ends
  load: reading, packing and checking the model in such a process; profile: measuring its speed
"""
TARGET_S = 5.0
PHASES = """
import json, sys, time
began_at_s = time.perf_counter()
import baton.worker.worker
from pathlib import Path
from baton.engine.engine import Engine
from baton.engine.engine_config import EngineConfig
from baton.worker.profile import measure_profile
imported_at_s = time.perf_counter()
engine = Engine(EngineConfig(Path(sys.argv[1])))
loaded_at_s = time.perf_counter()
measure_profile(engine)
done_at_s = time.perf_counter()
engine.close()
print(json.dumps([imported_at_s - began_at_s, loaded_at_s - imported_at_s, done_at_s - loaded_at_s]))
"""


def main() -> None:
    options = parser().parse_args()
    rounds = 2 if options.quick else options.rounds
    console = Console()
    with TemporaryDirectory(prefix="baton-startup-") as name:
        folder = Path(name)
        make_servable(folder)
        found = list(figures(folder, rounds, console))
    rows.publish(found, f"start of a worker, 135M parameters in bfloat16, median of {rounds}", options.json)


def make_servable(folder: Path) -> None:
    """The model of `engine.py` with the demo model's tokenizer, which knows fewer tokens."""
    engine_model.make_folder(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model.PATH / name, folder / name)


def figures(folder: Path, rounds: int, console: Console) -> Iterator[Row]:
    ready_s, phases_s = [], []
    for number in range(rounds + 1):
        console.print("warming the disk" if number == 0 else f"round {number} of {rounds}")
        ready_s.append(time_to_ready_s(folder))
        phases_s.append(time_of_phases_s(folder))
    yield Row(name="ready", value=statistics.median(ready_s[1:]), unit="s", target=TARGET_S)
    for phase, seconds in zip(("imports", "load", "profile"), zip(*phases_s[1:], strict=True), strict=True):
        yield Row(name=phase, value=statistics.median(seconds), unit="s")


def time_to_ready_s(folder: Path) -> float:
    """The start of a process is known to a hundredth of a second."""
    with live_cluster.running([f"--model={folder}", "--prefill=0", "--decode=1"]) as url:
        ready_at_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        with urllib.request.urlopen(f"{url}/workers") as answer:
            [worker] = json.load(answer)["workers"]
        return ready_at_s - started_at_s(worker["pid"])


def started_at_s(pid: int) -> float:
    """When a process started, in seconds since the machine did; the 22nd field of proc(5)'s stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def time_of_phases_s(folder: Path) -> list[float]:
    command = [sys.executable, "-P", "-c", PHASES, str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds: list[float] = json.loads(answer.stdout)
    return seconds


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures how soon a worker is ready.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="2 rounds, within a minute")
    add("--rounds", type=int, default=5, metavar="N", help="starts (default: 5)")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


if __name__ == "__main__":
    main()
