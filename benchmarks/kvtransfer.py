"""Measures the hand-off of KV blocks between two processes: Baton's schemes, NIXL and plain ucxx in one run.

`python benchmarks/kvtransfer.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import kv_memcpy
import rows
from contender_process import ContenderProcess
from kv_pair import CASES, Case
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rows import Row

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers"
EXAMPLES = """
examples:
  make bench-peers                                   # once: installs NIXL and ucxx beside the project
  python benchmarks/kvtransfer.py --quick
  python benchmarks/kvtransfer.py --json kvtransfer.json
  python benchmarks/kvtransfer.py --only shm "NIXL" --case "128 tokens"

what is measured:
  one hand-off, from "the sender has all blocks and knows the ticket (or descriptors)" until the sender knows
  that all bytes have arrived, checksums included where there are any; the median over all repetitions.
  Contenders take turns, burst by burst. memcpy copies as many bytes in one piece, within one process.
"""
HANDOFF = CASES[-1]
BURST_S = 0.25
QUICK_BURST_S = 0.1
WARM_UP_POOLS = 3
"""How often each pool is filled before anything counts, so that no page is met for the first time after."""

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Contender(NamedTuple):
    """script, arguments: a pair for `kv_pair.main`. home: its environment, None for this one. transports:
    UCX_TLS, where it is UCX that moves the bytes and not all are allowed. rivals: (peer, least ratio to it)."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    home: str | None = None
    transports: str | None = None
    rivals: tuple[tuple[str, float | None], ...] = ()

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.home is None else PEERS / self.home / "bin" / "python"


CONTENDERS = (
    Contender("NIXL", "kv_nixl.py", home="nixl"),
    Contender("ucxx", "kv_ucxx.py", home="ucxx"),
    Contender("shm", "kv_baton.py", ("shm",), rivals=(("NIXL", 3.0), ("ucxx", None))),
    Contender("shm unchecked", "kv_baton.py", ("shm", "unchecked"), rivals=(("NIXL", None),)),
    Contender("ucx", "kv_baton.py", ("ucx",), rivals=(("NIXL", 1.0), ("ucxx", None))),
    Contender("NIXL over TCP", "kv_nixl.py", home="nixl", transports="tcp"),
    Contender("ucxx over TCP", "kv_ucxx.py", home="ucxx", transports="tcp"),
    Contender(
        "ucx over TCP",
        "kv_baton.py",
        ("ucx",),
        transports="tcp",
        rivals=(("NIXL over TCP", 1.0), ("ucxx over TCP", None)),
    ),
    Contender("tcp", "kv_baton.py", ("tcp",), rivals=(("NIXL over TCP", 1.5), ("ucxx over TCP", None))),
    Contender("gloo", "kv_baton.py", ("gloo",), rivals=(("NIXL over TCP", None),)),
    Contender("tcp unchecked", "kv_baton.py", ("tcp", "unchecked"), rivals=(("NIXL over TCP", None),)),
)


class Pair(ContenderProcess):
    """A contender's two processes, of which the first speaks and ends with the other."""

    def __init__(self, contender: Contender) -> None:
        environment = {"NIXL_LOG_LEVEL": "ERROR", "UCX_WARN_UNUSED_ENV_VARS": "n"}
        if contender.transports is not None:
            environment["UCX_TLS"] = contender.transports
        command: list[str | Path] = [contender.python, HERE / contender.script, *contender.arguments]
        super().__init__(contender.name, command, environment, is_quiet=bool(contender.home))

    def prepare(self, case: Case) -> None:
        self.ask({"word": "prepare", "case": case})

    def burst(self, repetitions: int, realtime: bool) -> list[float]:
        """Seconds of each hand-off."""
        return self.ask({"word": "burst", "repetitions": repetitions, "realtime": realtime})


def main() -> None:
    console = Console()
    options = parser().parse_args()
    chosen = [each for each in CONTENDERS if not options.only or each.name in options.only]
    cases = [case for case in CASES if not options.case or options.case in case.name]
    if not cases:
        raise SystemExit(f"no case is called {options.case!r}; there are: {', '.join(c.name for c in CASES)}")
    for missing in sorted({str(each.home) for each in chosen if not each.python.exists()}):
        console.print(f"{missing} is not installed, so its figures are left out: `make bench-peers` gets it")
    rounds, burst_s = (3, QUICK_BURST_S) if options.quick else (options.rounds, BURST_S)
    medians: dict[tuple[str, Case], float] = {}
    with ExitStack() as stack:
        pairs = [Pair(each) for each in chosen if each.python.exists()]
        for pair in pairs:
            stack.callback(pair.close)
        with Progress(*COLUMNS, console=console) as progress:
            task = progress.add_task("measuring", total=len(cases) * rounds * (len(pairs) + 1))
            for case in cases:
                progress.update(task, description=case.name)
                for name, seconds in measure(pairs, case, rounds, burst_s, options.realtime):
                    medians[name, case] = seconds
                    progress.advance(task, rounds)
    found = list(figures(chosen, cases, medians))
    rows.publish(found, "KV hand-off between two processes", options.json)


def measure(
    pairs: list[Pair], case: Case, rounds: int, burst_s: float, realtime: bool
) -> Iterator[tuple[str, float]]:
    """(contender, median seconds of one hand-off); "memcpy" comes first."""
    memory = kv_memcpy.Memory(case)
    repetitions: dict[str, int] = {}
    seconds: dict[str, list[float]] = {"memcpy": []}
    for pair in pairs:
        pair.prepare(case)
        warm_s = statistics.median(pair.burst(WARM_UP_POOLS * case.pool_blocks // case.num_blocks, realtime))
        repetitions[pair.name] = max(2, min(100, round(burst_s / warm_s)))
        seconds[pair.name] = []
    for _ in range(rounds):
        seconds["memcpy"] += memory.burst(10, realtime)
        for pair in pairs:
            seconds[pair.name] += pair.burst(repetitions[pair.name], realtime)
    for name, every in seconds.items():
        yield name, statistics.median(every)


def figures(
    chosen: list[Contender], cases: list[Case], medians: dict[tuple[str, Case], float]
) -> Iterator[Row]:
    """Rates in GB/s; a contender that did not run has null."""

    def rate(name: str, case: Case) -> float | None:
        seconds = medians.get((name, case))
        return None if seconds is None else case.bytes / seconds / 1e9

    for case in cases:
        for contender in chosen:
            mine = rate(contender.name, case)
            if not contender.rivals:
                yield row(f"{contender.name}: {case.name}", mine, None, None, None)
                continue
            half = 0.5 if contender.name == "shm" and case is HANDOFF else None
            for rival, target in (*contender.rivals, ("memcpy", half)):
                yield row(f"{contender.name}: {case.name}", mine, rival, rate(rival, case), target)


def row(
    name: str, value: float | None, peer: str | None, peer_value: float | None, target: float | None
) -> Row:
    ratio = None if value is None or peer_value is None else value / peer_value
    return Row(
        name=name, value=value, unit="GB/s", peer=peer, peer_value=peer_value, ratio=ratio, target=target
    )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures the hand-off of KV blocks between two processes: Baton, NIXL, ucxx and memcpy.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="3 rounds, within a minute")
    add("--rounds", type=int, default=12, metavar="N", help="bursts of each contender (default: 12)")
    names = [contender.name for contender in CONTENDERS]
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"contenders, of: {', '.join(names)}")
    add("--case", metavar="TEXT", help="cases whose name has TEXT in it")
    add(
        "--realtime",
        action="store_true",
        help="bursts go before all else that runs on the machine (SCHED_RR): for one that is busy; needs root",
    )
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


if __name__ == "__main__":
    main()
