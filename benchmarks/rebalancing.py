"""Measures what workers that change roles are worth when traffic turns, on a simulated fleet.

`python benchmarks/rebalancing.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import rows
from rich.console import Console
from rich.progress import Progress
from rows import Row

from baton.fleet import Role
from baton.router.planner.rules import PlannerRules
from baton.sim.fleet_file import ElasticSpec, FleetSpec, Objectives, Pool, read_profile
from baton.sim.generators import BLOCK_TOKENS, generate
from baton.sim.report import meets_objectives
from baton.sim.simulation import Run, Simulation
from baton.sim.workload import SimRequest, Workload

EXAMPLES = """
examples:
  python benchmarks/rebalancing.py --quick
  python benchmarks/rebalancing.py --json rebalancing.json --plots plots
  python benchmarks/rebalancing.py --workers 32 --phase-s 300 --seed 3
  python benchmarks/rebalancing.py --workers 8 --rate 1.3 --phase-s 120 --cooldown-s 60
  python benchmarks/rebalancing.py --steady 1.0,1.5 --workers 8 --phase-s 150

what is measured:
  traffic turns from prompt-heavy to output-heavy and back. One fleet begins at the split that is best for the first
  phase, and its planner changes roles; beside it, splits that do not change are tried on each phase alone, and the
  best of each, chosen with hindsight, is added up. Good requests are those within both objectives. Steady
  traffic of either kind is to change nobody's role: with --steady that alone is tried, at the given multiples of
  the rates (1.5 takes nearly all that the best split bears) and with five seeds, beginning at the best split.
  Workers are H100 with Llama 70B (see services/sim/profiles);
  a decode worker that changes moves its sequences first.
"""
TTFT_S, TPOT_S = 2.0, 0.1
RULES = PlannerRules(ttft_s=TTFT_S, tpot_s=TPOT_S)
COOLDOWN_HELP = f"after a role change in which none goes the other way (default: {RULES.cooldown_s:g})"
BUDGET_HELP = f"role changes in any hour at most (default: {RULES.flips_per_hour})"
PROMPT_RPS, OUTPUT_RPS = 0.75, 2.25
"""Requests a second and worker: each takes about two thirds of what the best split bears."""
PROMPT_HEAVY, OUTPUT_HEAVY = "prompt-heavy", "output-heavy"
PROFILE = "h100-80g-llama-70b"
TRIED_SPLITS = 8
STEADY_SEEDS = 5
TARGET = 0.95
CHUNK_TOKENS, MAX_RUNNING, MAX_REQUESTS, QUEUE_TIMEOUT_S, LOCAL_TOKENS = 8192, 256, 100_000, 60.0, 64


@dataclass(frozen=True, slots=True)
class Setting:
    """phase_s: of each of three phases. rate: multiplies those of the workloads."""

    workers: int
    phase_s: float
    seed: int
    rate: float = 1.0

    def phase(self, kind: str, number: int) -> Workload:
        rate_rps = self.rate * self.workers * (PROMPT_RPS if kind == PROMPT_HEAVY else OUTPUT_RPS)
        drawn = generate(kind, int(1.2 * rate_rps * self.phase_s), rate_rps, self.seed + number)
        return replace(drawn, requests=[r for r in drawn.requests if r.arrival_s < self.phase_s])

    def phases(self) -> list[Workload]:
        kinds = (PROMPT_HEAVY, OUTPUT_HEAVY, PROMPT_HEAVY)
        return [self.phase(kind, number) for number, kind in enumerate(kinds)]

    def fleet(self, prefill: int, rules: PlannerRules | None) -> FleetSpec:
        hardware = read_profile(PROFILE, Path())
        pools = (
            Pool("p", Role.PREFILL, prefill, hardware, hardware.cost_per_hour),
            Pool("d", Role.DECODE, self.workers - prefill, hardware, hardware.cost_per_hour),
        )
        return FleetSpec(
            pools,
            Objectives(TTFT_S, TPOT_S),
            CHUNK_TOKENS,
            MAX_RUNNING,
            MAX_REQUESTS,
            QUEUE_TIMEOUT_S,
            LOCAL_TOKENS,
            elastic=None if rules is None else ElasticSpec(rules),
        )

    def splits(self) -> list[int]:
        """Numbers of prefill workers."""
        step = max(1, self.workers // TRIED_SPLITS)
        return list(range(step, self.workers, step))


def joined(phases: list[Workload], phase_s: float) -> Workload:
    """One phase after the other; equal hashes in two of them do not mean equal prompts."""
    requests: list[SimRequest] = []
    for number, phase in enumerate(phases):
        for request in phase.requests:
            hashes = tuple(block[:7] + bytes([number]) + block[8:] for block in request.hashes)
            at_s = number * phase_s + request.arrival_s
            requests.append(replace(request, number=len(requests), arrival_s=at_s, hashes=hashes))
    return Workload("turning", BLOCK_TOKENS, requests)


def good(run: Run) -> int:
    return sum(meets_objectives(run, ride) for ride in run.rides)


def best_split(setting: Setting, phase: Workload, progress: Progress) -> tuple[int, int]:
    """(good requests, prefill workers); of equals the split whose requests end soonest."""
    task = progress.add_task(f"splits, {phase.name}", total=len(setting.splits()))

    def tried() -> Iterator[tuple[int, float, int]]:
        for prefill in setting.splits():
            run = Simulation(setting.fleet(prefill, None), phase).run()
            yield good(run), -sum(ride.last_token_at_s - ride.arrived_at_s for ride in run.rides), prefill
            progress.advance(task)

    count, _, prefill = max(tried())
    return count, prefill


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
    hindsight = [best_split(setting, phase, progress) for phase in phases]
    task = progress.add_task("with the planner", total=3)
    turning = joined(phases, setting.phase_s)
    run = Simulation(setting.fleet(hindsight[0][1], rules), turning).run()
    progress.advance(task)
    steady_flips = 0
    for phase, (_, prefill) in zip(phases[:2], hindsight, strict=False):
        steady_flips += len(Simulation(setting.fleet(prefill, rules), phase).run().flips)
        progress.advance(task)
    fixed = max(
        good(Simulation(setting.fleet(prefill, None), turning).run())
        for prefill in {prefill for _, prefill in hindsight}
    )
    return figures(setting, rules, hindsight, run, steady_flips, fixed), run


def measure_steady(
    setting: Setting, rules: PlannerRules, rates: list[float], progress: Progress
) -> list[Row]:
    result = []
    for rate in rates:
        for number, kind in enumerate((PROMPT_HEAVY, OUTPUT_HEAVY)):
            first = replace(setting, rate=rate)
            _, prefill = best_split(first, first.phase(kind, number), progress)
            task = progress.add_task(f"with the planner, {kind}", total=STEADY_SEEDS)
            flips = 0
            for seed in range(STEADY_SEEDS):
                phase = replace(first, seed=setting.seed + 10 * seed).phase(kind, number)
                flips += len(Simulation(setting.fleet(prefill, rules), phase).run().flips)
                progress.advance(task)
            split = f"{prefill}:{setting.workers - prefill}"
            name = f"role changes, {kind} at {rate:g} times the rate, {split}, {STEADY_SEEDS} seeds"
            result.append(Row(name=name, value=flips, unit="flips", target=0))
    return result


def figures(
    setting: Setting,
    rules: PlannerRules,
    hindsight: list[tuple[int, int]],
    run: Run,
    steady_flips: int,
    fixed: int,
) -> list[Row]:
    duration_s = 3 * setting.phase_s
    best = sum(count for count, _ in hindsight)
    splits = ", ".join(f"{prefill}:{setting.workers - prefill}" for _, prefill in hindsight)
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
            peer="the better of these splits, all the time",
            peer_value=fixed / duration_s,
            ratio=good(run) / max(1, fixed),
        ),
        Row(name="role changes", value=len(run.flips), unit="flips", target=rules.flips_per_hour),
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
    add("--flips-per-hour", type=int, default=RULES.flips_per_hour, metavar="N", help=BUDGET_HELP)
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
    Console().print(rows.table(result, f"traffic turns every {options.phase_s:g} s"))
    if options.json is not None:
        rows.write_json(result, options.json)
    if options.plots is not None and not options.steady:
        write_plot(run, setting, options.plots)


if __name__ == "__main__":
    main()
