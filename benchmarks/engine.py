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

import engine_plot
import rows
from contender_process import ContenderProcess
from engine_limits import Limits
from engine_model import make_folder
from engine_work import Work
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rows import Row

HERE = Path(__file__).resolve().parent
EXAMPLES = """
examples:
  python benchmarks/engine.py --quick
  make bench-peers                     once: llama.cpp and OpenVINO
  python benchmarks/engine.py --json engine.json --plot engine.png
  python benchmarks/engine.py --only "decode 16" "decode 32"

what is measured:
  prefill B × T: one pass over B prompts of T tokens, and the first token of each
  decode B × T: one step of B sequences, each with T tokens before the first step; greedy
  step B × T: the same by Baton alone, behind a cache of zeros
  figures are of the median pass or step; the roofline is the least that memory and matrix units allow, as
  measured in the same process. The model is a Llama of 135M parameters with random bfloat16 weights,
  written to a folder that every contender loads. Contenders take turns, burst by burst.
"""
BATON = "Baton"
PEER_ENVIRONMENTS = HERE.parent / ".venv-peers"
CONTENDERS = {
    BATON: (Path(sys.executable), "engine_baton.py"),
    "transformers": (Path(sys.executable), "engine_transformers.py"),
    "llama.cpp": (PEER_ENVIRONMENTS / "llamacpp/bin/python", "engine_llamacpp.py"),
    "OpenVINO": (PEER_ENVIRONMENTS / "openvino/bin/python", "engine_openvino.py"),
}
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
LIMITS = Work("limits", 1, 1)
OUTSIDE = Work("outside", 32, 256, 10.0)
STEPS = tuple(Work("step", batch, tokens) for batch in (1, 8, 32) for tokens in (128, 512, 2048))
BURST_S = 0.6
MAX_REPETITIONS = 24
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Process(ContenderProcess):
    """A contender's process; see `engine_work.answer`."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        python, script = CONTENDERS[name]
        command: list[str | Path] = [python, HERE / script, folder, str(threads)]
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="baton-engine-")))
        make_folder(folder)
        contenders = []
        for name, (python, _) in CONTENDERS.items():
            if not python.exists():
                console.print(f"{name} is not installed (make bench-peers)")
                continue
            contenders.append(Process(name, folder, options.threads))
            stack.callback(contenders[-1].close)
        found = list(run(contenders, works, options, console))
    rows.publish(found, f"one engine, {options.threads} threads, 135M parameters in bfloat16", options.json)
    if options.plot is not None:
        engine_plot.draw(found, options.plot)


def run(
    contenders: list[Process], works: list[Work], options: argparse.Namespace, console: Console
) -> Iterator[Row]:
    medians: dict[tuple[str, Work], float] = {}
    baton, rounds = contenders[0], 2 if options.quick else options.rounds
    alone = [] if options.quick or options.only else [OUTSIDE, *STEPS]
    with Progress(*COLUMNS, console=console) as progress:
        task = progress.add_task("measuring", total=len(works) + len(alone) + 1)
        limits = Limits(*baton.burst(LIMITS, 1, options.realtime))
        progress.advance(task)
        for work in works + alone:
            progress.update(task, description=work.name)
            turns = [baton] if work in alone else contenders
            medians |= measure(turns, work, 1 if work in alone else rounds, options.realtime)
            progress.advance(task)
    yield from figures(works, medians)
    yield from machine_figures(works, medians, limits)
    yield from alone_figures(alone, medians, limits)


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
        for peer in (name for name in CONTENDERS if name != BATON):
            seconds = medians.get((peer, work))
            theirs = None if seconds is None else work.tokens_a_time / seconds
            yield Row(
                name=work.name,
                value=mine,
                unit="tok/s",
                peer=peer,
                peer_value=theirs,
                ratio=None if theirs is None else mine / theirs,
                target=work.target,
            )


def machine_figures(
    works: list[Work], medians: dict[tuple[str, Work], float], limits: Limits
) -> Iterator[Row]:
    """What the machine can do, and how much of that each work got."""
    yield Row(name="memory read", value=limits.read_bytes_per_s / 1e9, unit="GB/s")
    yield Row(name="bfloat16 products", value=limits.product_flop_per_s / 1e9, unit="GFLOP/s")
    for work in works:
        share = 100 * limits.seconds(work) / medians[BATON, work]
        yield Row(name=f"{work.name}: of the roofline", value=share, unit="%")


def alone_figures(alone: list[Work], medians: dict[tuple[str, Work], float], limits: Limits) -> Iterator[Row]:
    for work in alone:
        median = medians[BATON, work]
        if work == OUTSIDE:
            name = f"decode {work.batch} × {work.tokens}: outside the model's kernels"
            yield Row(name=name, value=100 * median, unit="%", target=work.target)
            continue
        yield Row(name=work.name, value=1e3 * median, unit="ms")
        yield Row(name=f"{work.name}: of the roofline", value=100 * limits.seconds(work) / median, unit="%")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures prefill and decode by Baton's engine and its peers.",
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
    add("--plot", type=Path, metavar="FILE", help="draws the ratios there (PNG, SVG or PDF)")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


if __name__ == "__main__":
    main()
