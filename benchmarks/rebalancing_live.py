"""Measures what workers that change roles are worth when traffic turns, on a live cluster of two cores.

`python benchmarks/rebalancing_live.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import rows
from cpu_share import NoCpuQuota
from open_loop import decisions, send
from quick import parsed
from random_model import make_servable, vocabulary
from rebalancing_figures import SPLITS, STEADY, TURNING, Limits, best_split, figures, plot, told
from rich.console import Console
from rich.progress import Progress
from shared_cluster import Shares, running
from turning_traffic import OUTPUT_HEAVY, PROMPT_HEAVY, Kind, Objectives, Run, traffic

EXAMPLES = """
examples:
  python benchmarks/rebalancing_live.py --quick
  python benchmarks/rebalancing_live.py --json live.json --plot live.png
  python benchmarks/rebalancing_live.py --runs live --only 3:1        # in pieces: one cluster,
  python benchmarks/rebalancing_live.py --runs live --only turning    # another,
  python benchmarks/rebalancing_live.py --runs live --json live.json  # and whatever is missing

what is measured:
  four workers and a router, each a process; each worker has --share of a core of its own (a CPU quota of a
  control group: takes root), so that splits into prefill and decode workers differ as on as many machines.
  Requests come at random times at a fixed rate, whether those before them are answered or not, first
  prompt-heavy, then output-heavy, then prompt-heavy again. Good are those that meet both objectives at the
  client. The splits 3:1, 2:2 and 1:3 get each kind of traffic alone, after a warm-up; the best of each is added
  up, with hindsight. "turning" begins at the best split of the first phase with the planner on, and goes through
  all three phases; "steady" is one kind at its best split with the planner on, where no role is to change.
  Equal phases have equal requests, of random tokens.
"""
CLUSTERS = (*SPLITS, TURNING, STEADY)
KV_BLOCKS = 2048
LAYERS = 30
"""SmolLM-135M's: a decode step takes longer than the time slice for which a quota is not looked at."""
QUICK = {"phase_s": 20.0, "warm_up_s": 6.0}


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs one cluster after the other. known: the runs that were, by name."""

    options: argparse.Namespace
    model: Path
    progress: Progress
    known: dict[str, Run] = field(default_factory=dict)

    def measure(self, cluster: str) -> list[Run]:
        """What one of `CLUSTERS` makes of its traffic."""
        kinds: tuple[Kind, Kind] = self.options.prompt_heavy, self.options.output_heavy
        if cluster in SPLITS:
            return self._runs(cluster, [], {f"{cluster} {kind.name}": [kind] for kind in kinds})
        if cluster == TURNING:
            return self._runs(self._best(kinds[0]), self._planner(), {TURNING: [*kinds, kinds[0]]})
        return [
            run
            for kind in kinds
            for run in self._runs(self._best(kind), self._planner(), {f"{STEADY} {kind.name}": [kind]})
        ]

    @property
    def objectives(self) -> Objectives:
        return Objectives(self.options.ttft, self.options.tpot)

    def _best(self, kind: Kind) -> str:
        return best_split(self.known, kind.name, self.objectives)

    def _planner(self) -> list[str]:
        options = self.options
        return [
            "--planner=on",
            f"--planner-ttft={options.ttft}",
            f"--planner-tpot={options.tpot}",
            f"--planner-cooldown={options.cooldown_s}",
            f"--planner-flips-per-hour={options.flips_per_hour}",
        ]

    def _runs(self, split: str, planner: list[str], traffic_of: dict[str, list[Kind]]) -> list[Run]:
        """One cluster of `split` serves these runs, of each its kinds in a row."""
        options = self.options
        starting = self.progress.add_task(f"starting {split}", total=None)
        prefill, decode = map(int, split.split(":"))
        with tempfile.TemporaryDirectory(prefix="baton-rebalancing-") as folder:
            event_log = Path(folder) / "events.jsonl"
            objectives = [f"--slo-ttft={options.ttft}", f"--slo-tpot={options.tpot}"]
            router = [f"--event-log={event_log}", *objectives, *planner, *options.router]
            shares = Shares(self.model, options.share, [f"--kv-blocks={KV_BLOCKS}"], router)
            with running(shares, prefill, decode) as url:
                self.progress.remove_task(starting)
                return [
                    asyncio.run(self._run(name, url, kinds, event_log)) for name, kinds in traffic_of.items()
                ]

    async def _run(self, name: str, url: str, kinds: list[Kind], event_log: Path) -> Run:
        options = self.options
        plan = traffic(kinds, options.phase_s, options.warm_up_s, options.seed)
        grace_s = options.ttft + options.tpot * max(sent.output_tokens for sent in plan)
        answers, began_unix_s = await send(url, plan, vocabulary(self.model), grace_s, self.progress, name)
        return Run(name, answers, decisions(event_log, began_unix_s))


def measure(bench: Bench, folder: Path | None, only: str | None, console: Console) -> None:
    """Each cluster whose runs are not known, or `only` one; what comes of it is kept in `folder`."""
    for cluster in [only] if only else CLUSTERS:
        if not only and any(f"{name} ".startswith(f"{cluster} ") for name in bench.known):
            continue
        runs = bench.measure(cluster)
        for run in runs:
            bench.known[run.name] = run
            console.print(told(run, bench.objectives), highlight=False)
        if folder is not None:
            keep(folder, cluster, runs)


def keep(folder: Path, cluster: str, runs: list[Run]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{cluster.replace(':', '-')}.json").write_bytes(msgspec.json.encode(runs))


def known_in(folder: Path | None) -> dict[str, Run]:
    """Raises msgspec.ValidationError for a file that is none of ours."""
    files = sorted(folder.glob("*.json")) if folder is not None else []
    runs = (run for file in files for run in msgspec.json.decode(file.read_bytes(), type=list[Run]))
    return {run.name: run for run in runs}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures what workers that change roles are worth when traffic turns, live.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="phases of 20 s; shows that it works, not how well")
    add("--share", type=positive, default=0.3, metavar="X", help="of a core, for each worker (default: 0.3)")
    add("--phase-s", type=positive, default=75.0, metavar="S", help="of each phase (default: 75)")
    add("--warm-up-s", type=positive, default=18.0, metavar="S", help="before it (default: 18)")
    kind = (
        "requests a second, tokens of a prompt and of an answer, these give or take a quarter (default: {})"
    )
    for name, default in ((PROMPT_HEAVY, "4.2:300:8"), (OUTPUT_HEAVY, "5.5:32:96")):
        add(
            f"--{name}",
            type=partial(kind_of, name),
            default=kind_of(name, default),
            metavar="RATE:PROMPT:OUTPUT",
            help=kind.format(default),
        )
    add("--ttft", type=positive, default=3.0, metavar="S", help="objective of the first token (default: 3)")
    add("--tpot", type=positive, default=0.08, metavar="S", help="of each later token (default: 0.08)")
    add("--cooldown-s", type=positive, default=10.0, metavar="S", help="of the planner (default: 10)")
    add("--flips-per-hour", type=int, default=30, metavar="N", help="its budget (default: 30)")
    add("--seed", type=int, default=0, metavar="N", help="of the requests (default: 0)")
    add("--router", action="append", default=[], metavar="FLAG", help="further option of the router; repeat")
    add(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="keeps runs there, and repeats none that it has; for one set of options",
    )
    add("--only", choices=CLUSTERS, metavar="NAME", help=f"one of {', '.join(CLUSTERS)}; needs --runs")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    add("--plot", type=Path, metavar="FILE", help="draws goodput over time there, as PNG (needs matplotlib)")
    return result


def kind_of(name: str, text: str) -> Kind:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 4.2:300:8")
    return Kind(name, positive(parts[0]), int(parts[1]), int(parts[2]))


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    result = parser()
    options = parsed(result, arguments, QUICK)
    if options.only and options.runs is None:
        result.error("--only needs --runs, to keep what it measures")
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        make_servable(Path(folder), LAYERS)
        bench = Bench(options, Path(folder), progress, known_in(options.runs))
        try:
            measure(bench, options.runs, options.only, console)
        except NoCpuQuota as error:
            sys.exit(f"no CPU shares: {error}")
    if options.only:
        return
    limits = Limits(options.phase_s, options.cooldown_s, options.flips_per_hour)
    rows.publish(figures(bench.known, limits, bench.objectives), "traffic that turns, live", options.json)
    if options.plot is not None:
        plot(bench.known[TURNING], options.phase_s, bench.objectives, options.plot)


if __name__ == "__main__":
    main()
