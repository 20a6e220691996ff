"""Measures what workers that change roles are worth when traffic turns, on a simulated fleet.

`python benchmarks/rebalancing.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import rows
from rebalancing_fleet import (
    OBJECTIVES,
    OUTPUT_HEAVY,
    PROMPT_HEAVY,
    TURNING,
    Setting,
    Split,
    best_split,
    good,
    joined,
)
from rich.console import Console
from rich.progress import Progress
from rows import Row

from baton.router.planner.rules import PlannerRules
from baton.sim.simulation import Run, Simulation
from baton.sim.workload import Workload

EXAMPLES = """
examples:
  python benchmarks/rebalancing.py --quick
  python benchmarks/rebalancing.py --rate 1.5 --phase-s 300 --json rebalancing.json --plots plots
  python benchmarks/rebalancing.py --workers 32 --phase-s 300 --seed 3
  python benchmarks/rebalancing.py --workers 8 --rate 1.3 --phase-s 120 --cooldown-s 60
  python benchmarks/rebalancing.py --steady 1.0,1.5 --workers 8 --phase-s 150

what is measured:
  traffic turns from prompt-heavy to output-heavy and back. One fleet begins at the split that is best for the first
  phase, and its planner changes roles; beside it, splits that do not change are tried on each phase alone, and the
  best of each, chosen with hindsight, is added up; and on all phases, to see what one split could do: at the rates
  themselves nearly as much, at 1.5 times not. Good requests are those within both objectives. Steady traffic of
  either kind is to change nobody's role: with --steady that alone is tried, at the given multiples of the rates
  (1.5 takes nearly all that the best split bears) and with five seeds, beginning at the best split. Workers are
  H100 with Llama 70B (see services/sim/profiles); a decode worker that changes moves its sequences first.
"""
RULES = PlannerRules(ttft_s=OBJECTIVES.ttft, tpot_s=OBJECTIVES.tpot)
COOLDOWN_HELP = f"after a role change in which none goes the other way (default: {RULES.cooldown_s:g})"
BUDGET_HELP = "role changes in any hour at most (default: 30, or two for each worker where that is more)"
STEADY_SEEDS = 5
TARGET = 0.95
LIKELY = {PROMPT_HEAVY: 7 / 8, OUTPUT_HEAVY: 1 / 8, TURNING: 3 / 8}
"""Shares of prefill workers that are tried first."""


def soonest_return_s(run: Run) -> float | None:
    """The shortest time from a flip to one that goes the other way; None where none does."""
    flips = run.flips
    return min(
        (
            later.told_at_s - flip.told_at_s
            for flip in flips
            for later in flips
            if later.role is not flip.role and later.told_at_s >= flip.told_at_s
        ),
        default=None,
    )


def measure(setting: Setting, rules: PlannerRules, progress: Progress) -> tuple[list[Row], Run]:
    phases = setting.phases()
    hindsight = [best_of(setting, phase, progress) for phase in phases]
    turning = joined(phases, setting.phase_s)
    fixed = best_of(setting, turning, progress)
    task = progress.add_task("with the planner", total=3)
    run = Simulation(setting.fleet(hindsight[0].prefill, rules), turning).run()
    progress.advance(task)
    steady_flips = 0
    for phase, split in zip(phases[:2], hindsight, strict=False):
        steady_flips += len(Simulation(setting.fleet(split.prefill, rules), phase).run().flips)
        progress.advance(task)
    return figures(setting, rules, hindsight, run, steady_flips, fixed), run


def best_of(setting: Setting, traffic: Workload, progress: Progress) -> Split:
    splits = setting.splits(LIKELY[traffic.name])
    task = progress.add_task(f"splits, {traffic.name}", total=len(splits))
    return best_split(setting, traffic, splits, lambda: progress.advance(task))


def measure_steady(
    setting: Setting, rules: PlannerRules, rates: list[float], progress: Progress
) -> list[Row]:
    result = []
    for rate in rates:
        for number, kind in enumerate((PROMPT_HEAVY, OUTPUT_HEAVY)):
            first = replace(setting, rate=rate)
            split = best_of(first, first.phase(kind, number), progress)
            task = progress.add_task(f"with the planner, {kind}", total=STEADY_SEEDS)
            flips = 0
            for seed in range(STEADY_SEEDS):
                phase = replace(first, seed=setting.seed + 10 * seed).phase(kind, number)
                flips += len(Simulation(setting.fleet(split.prefill, rules), phase).run().flips)
                progress.advance(task)
            name = f"role changes, {kind} at {rate:g} times the rate, {ratio(setting, split)}, {STEADY_SEEDS} seeds"
            result.append(Row(name=name, value=flips, unit="flips", target=0))
    return result


def ratio(setting: Setting, split: Split) -> str:
    return f"{split.prefill}:{setting.workers - split.prefill}"


def figures(
    setting: Setting,
    rules: PlannerRules,
    hindsight: list[Split],
    run: Run,
    steady_flips: int,
    fixed: Split,
) -> list[Row]:
    duration_s = 3 * setting.phase_s
    best = sum(split.good for split in hindsight)
    splits = ", ".join(ratio(setting, split) for split in hindsight)
    name = f"goodput over three phases, {setting.workers} workers"
    return [
        Row(
            name=name,
            value=good(run) / duration_s,
            unit="requests/s",
            peer=f"best split of each phase ({splits})",
            peer_value=best / duration_s,
            ratio=good(run) / best,
            target=TARGET,
        ),
        Row(
            name=name,
            value=good(run) / duration_s,
            unit="requests/s",
            peer=f"the best split all the time ({ratio(setting, fixed)})",
            peer_value=fixed.good / duration_s,
            ratio=good(run) / max(1, fixed.good),
        ),
        Row(
            name="role changes", value=len(run.flips), unit="flips", target=rules.flip_budget(setting.workers)
        ),
        Row(
            name="soonest change the other way",
            value=soonest_return_s(run),
            unit="s",
            target=rules.cooldown_s,
        ),
        Row(name="role changes under steady traffic", value=steady_flips, unit="flips", target=0),
    ]


def write_plot(run: Run, setting: Setting, folder: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    workers, queue = figure.subplots(2, 1, sharex=True)
    at_s = [sample.at_s for sample in run.samples]
    for role in ("prefill", "decode"):
        counts = [getattr(sample, role) for sample in run.samples]
        workers.plot(at_s, counts, drawstyle="steps-post", label=role)
    queue.plot(at_s, [sample.queued_tokens for sample in run.samples])
    for axes in (workers, queue):
        for number in (1, 2):
            axes.axvline(number * setting.phase_s, linestyle="--", color="grey")
    workers.set(ylabel="workers that take requests", ylim=(0, None))
    workers.legend()
    queue.set(ylabel="prompt tokens queued", xlabel="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "rebalancing.png")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures what workers that change roles are worth when traffic turns.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="8 workers, phases of 200 s, within a minute")
    add("--workers", type=int, default=64, metavar="N", help="in both pools together (default: 64)")
    add("--phase-s", type=float, default=600.0, metavar="S", help="of each phase (default: 600)")
    add("--rate", type=positive, default=1.0, metavar="X", help="times the rates of both kinds (default: 1)")
    add("--cooldown-s", type=positive, default=RULES.cooldown_s, metavar="S", help=COOLDOWN_HELP)
    add("--flips-per-hour", type=int, metavar="N", help=BUDGET_HELP)
    add("--seed", type=int, default=0, metavar="N", help="of the requests (default: 0)")
    add("--steady", type=rates, metavar="RATES", help="only steady traffic, at these multiples of the rates")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    add("--plots", type=Path, metavar="FOLDER", help="writes rebalancing.png there")
    return result


def rates(text: str) -> list[float]:
    return [positive(rate) for rate in text.split(",")]


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main() -> None:
    options = parser().parse_args()
    if options.quick:
        options.workers, options.phase_s = 8, 200.0
    setting = Setting(options.workers, options.phase_s, options.seed, options.rate)
    rules = replace(RULES, cooldown_s=options.cooldown_s, flips_per_hour=options.flips_per_hour)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if options.steady:
            result = measure_steady(setting, rules, options.steady, progress)
        else:
            result, run = measure(setting, rules, progress)
    rows.publish(result, f"traffic turns every {options.phase_s:g} s", options.json)
    if options.plots is not None and not options.steady:
        write_plot(run, setting, options.plots)


if __name__ == "__main__":
    main()
