"""Measures prefill and decode of one model folder by Baton's engine and by its peers, in turns, in one run.

`python benchmarks/engine.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import rows
from contender_process import ContenderProcess
from engine_work import Work, make_folder
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rows import Row

HERE = Path(__file__).resolve().parent
EXAMPLES = """
examples:
  python benchmarks/engine.py --quick
  python benchmarks/engine.py --json engine.json
  python benchmarks/engine.py --only "decode 16" "decode 32"

what is measured:
  prefill B × T: one pass over B prompts of T tokens, and the first token of each
  decode B × T: one step of B sequences, each with T tokens before the first step; greedy
  figures are of the median pass or step. The model is a Llama of 135M parameters with random bfloat16 weights,
  written to a folder that every contender loads. Contenders take turns, burst by burst.
"""
BATON = "Baton"
SCRIPTS = {BATON: "engine_baton.py", "transformers": "engine_transformers.py"}
WORKS = (
    Work("prefill", 1, 128, 1.0),
    Work("prefill", 1, 512, 1.0),
    Work("prefill", 1, 2048, 1.0),
    Work("prefill", 8, 128, 1.0),
    Work("decode", 1, 128, 1.0),
    Work("decode", 8, 128, 1.0),
    Work("decode", 16, 256, 1.3),
    Work("decode", 32, 256, 1.3),
)
BURST_S = 0.6
MAX_REPETITIONS = 24
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Process(ContenderProcess):
    """A contender's process; see `engine_work.answer`."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        command: list[str | Path] = [sys.executable, HERE / SCRIPTS[name], folder, str(threads)]
        super().__init__(name, command, is_quiet=name != BATON)
        self.read()

    def burst(self, work: Work, repetitions: int, realtime: bool) -> list[float]:
        return self.ask([work, repetitions, realtime])


def main() -> None:
    console = Console()
    options = parser().parse_args()
    works = [work for work in WORKS if not options.only or any(text in work.name for text in options.only)]
    if not works:
        raise SystemExit(f"nothing is called {options.only}; there is: {', '.join(w.name for w in WORKS)}")
    rounds = 2 if options.quick else options.rounds
    medians: dict[tuple[str, Work], float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="baton-engine-")))
        make_folder(folder)
        contenders = [Process(name, folder, options.threads) for name in SCRIPTS]
        for contender in contenders:
            stack.callback(contender.close)
        with Progress(*COLUMNS, console=console) as progress:
            task = progress.add_task("measuring", total=len(works))
            for work in works:
                progress.update(task, description=work.name)
                medians |= measure(contenders, work, rounds, options.realtime)
                progress.advance(task)
    found = list(figures(works, medians))
    console.print(rows.table(found, f"one engine, {options.threads} threads, 135M parameters in bfloat16"))
    if options.json is not None:
        rows.write_json(found, options.json)


def measure(
    contenders: list[Process], work: Work, rounds: int, realtime: bool
) -> dict[tuple[str, Work], float]:
    """Median seconds of one pass or step by (contender, work)."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    repetitions = {
        contender.name: max(1, min(MAX_REPETITIONS, round(BURST_S / contender.burst(work, 1, realtime)[0])))
        for contender in contenders
    }
    for _ in range(rounds):
        for contender in contenders:
            seconds[contender.name] += contender.burst(work, repetitions[contender.name], realtime)
    return {(name, work): statistics.median(every) for name, every in seconds.items()}


def figures(works: list[Work], medians: dict[tuple[str, Work], float]) -> Iterator[Row]:
    """Tokens a second."""
    for work in works:
        mine = work.tokens_a_time / medians[BATON, work]
        for peer in (name for name in SCRIPTS if name != BATON):
            theirs = work.tokens_a_time / medians[peer, work]
            yield Row(
                name=work.name,
                value=mine,
                unit="tok/s",
                peer=peer,
                peer_value=theirs,
                ratio=mine / theirs,
                target=work.target,
            )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures prefill and decode by Baton's engine and by Hugging Face transformers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="2 rounds, within a minute")
    add("--rounds", type=int, default=6, metavar="N", help="bursts of each contender (default: 6)")
    add("--only", nargs="+", metavar="TEXT", help="work whose name has one of these in it")
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="of each contender (default: all cores)",
    )
    add(
        "--realtime",
        action="store_true",
        help="bursts go before all else that runs on the machine (SCHED_RR): for one that is busy; needs root",
    )
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


if __name__ == "__main__":
    main()
