"""Measures what a placement costs, and by simulation what it is worth.

`python benchmarks/placement.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rows
from placement_cost import Fleet
from placement_fleets import fleet, goodput_rps, pooled_hit_rate, simulate, with_routers
from placement_mixes import MIXES, QUICK_MIXES, compared_modes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rows import Row

from baton.router.policies import POLICIES
from baton.router.snapshot import Disaggregation
from baton.sim.generators import generate
from baton.sim.trace import read_trace
from baton.sim.workload import Workload

EXAMPLES = """
examples:
  python benchmarks/placement.py --quick
  python benchmarks/placement.py --trace requests.jsonl --seeds 3 --json placement.json --plot goodput.png

what is measured:
  decision: one placement of an 8k-token prompt, the match of its 512 blocks and a changed load included, without
    objectives and with one of 50 ms a token, after 2,000 that are not counted
  goodput at N x: requests that met TTFT 2 s and TPOT 50 ms, a second of arrivals; 16 H100 prefill and 8 H200 decode
    a Llama of 8B; requests arrive N times as fast as the trace has them
  hit rate: share of prompt tokens not computed, beside one LRU cache as large as all prefill workers' together
  hottest: the busiest prefill worker's seconds over the mean
  auto: disaggregation decided for each request, beside the better of always and never, on made traffic; of several
    seeds the one where deciding comes off worst
  routers: hit rate of four routers that hear of each other's load every 250 ms, less that of one
"""
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
TARGET_S = {64: 50e-6, 1000: 300e-6}
OBJECTIVES = {"": None, ", TPOT objective": 0.05}
"""Of the requests that are placed, in seconds: with one, computing on a decode worker is compared as well."""

LEVELS = {"trace": (4.0, 6.0, 8.0, 10.0), "agent": (1.0, 1.5, 2.0, 2.5)}
PEERS = [name for name in POLICIES if name != "predicted"]
Goodputs = dict[float, dict[str, float]]


def main() -> None:
    console = Console()
    options = parser().parse_args()
    name = "agent" if options.trace is None else "trace"
    traffic = read_trace(options.trace) if options.trace else generate("agent", 3000, 60.0, options.seed)
    levels = LEVELS[name][-1:] if options.quick else LEVELS[name]
    goodputs: Goodputs = {}
    with Progress(*COLUMNS, console=console) as progress:
        mixes = QUICK_MIXES if options.quick else MIXES
        seeds = range(options.seed, options.seed + options.seeds)
        runs = len(levels) * len(POLICIES) + 2 + len(Disaggregation) * len(mixes) * len(seeds)
        task = progress.add_task("measuring", total=runs + len(TARGET_S) * len(OBJECTIVES))

        def step(text: str) -> None:
            progress.update(task, description=text, advance=1)

        found = list(decisions(2000 if options.quick else 20_000, step))
        found += quality(traffic, levels, step, goodputs)
        found += routers(traffic.at_rate(levels[0]), step)
        found += compared_modes(mixes, seeds, step)
    rows.publish(found, "placement", options.json)
    if options.plot is not None:
        plot(goodputs, options.plot)


def decisions(count: int, step: Callable[[str], None]) -> Iterator[Row]:
    for workers, target_s in TARGET_S.items():
        made = Fleet(workers)
        made.placements_s(2000)
        for kind, tpot_s in OBJECTIVES.items():
            step(f"{workers} workers{kind}")
            for clock, seconds in zip(("", ", thread time"), made.placements_s(count, tpot_s), strict=True):
                p50, p99 = np.percentile(seconds, (50, 99)) * 1e6
                name = f"decision, {workers} workers{kind}"
                yield Row(name=f"{name}, median{clock}", value=float(p50), unit="us")
                yield Row(name=f"{name}, p99{clock}", value=float(p99), unit="us", target=target_s * 1e6)


def quality(
    traffic: Workload, levels: tuple[float, ...], step: Callable[[str], None], goodputs: Goodputs
) -> Iterator[Row]:
    spec = fleet()
    bound = pooled_hit_rate(spec, traffic)
    for level in levels:
        sent = traffic.at_rate(level)
        step(f"predicted at {level:g} x")
        own = simulate(spec, sent)
        reached = {"predicted": goodput_rps(own, sent)}
        for peer in PEERS:
            step(f"{peer} at {level:g} x")
            reached[peer] = goodput_rps(simulate(spec, sent, peer), sent)
        goodputs[level] = reached
        for peer in PEERS:
            target = 1.3 if peer == "round_robin" and level == levels[-1] else 1.0
            yield compared(
                f"goodput at {level:g} x", "req/s", reached["predicted"], peer, reached[peer], target
            )
        hit, most = own.cache_hit_rate, own.unlimited_hit_rate
        yield Row(
            name=f"hit rate at {level:g} x", value=hit, unit="", peer="one pooled cache", peer_value=bound
        )
        yield Row(name=f"pooled less own at {level:g} x", value=bound - hit, unit="", target=0.02)
        yield Row(name="hit rate, cache without bounds", value=most, unit="")
        yield Row(name=f"hottest at {level:g} x", value=own.pools[0].hottest, unit="x", target=1.25)


def routers(sent: Workload, step: Callable[[str], None]) -> Iterator[Row]:
    rates = []
    for count in (1, 4):
        step(f"{count} routers")
        rates.append(simulate(with_routers(fleet(), count, 0.25), sent).cache_hit_rate)
    yield Row(name="hit rate lost by four routers", value=rates[0] - rates[1], unit="", target=0.01)


def compared(name: str, unit: str, value: float, peer: str, peer_value: float, target: float) -> Row:
    ratio = value / peer_value if peer_value else None
    return Row(
        name=name, value=value, unit=unit, peer=peer, peer_value=peer_value, ratio=ratio, target=target
    )


def plot(goodputs: Goodputs, path: Path) -> None:
    """PNG of goodput by load and policy; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for policy in POLICIES:
        axes.plot(
            list(goodputs), [reached[policy] for reached in goodputs.values()], marker="o", label=policy
        )
    axes.set_xlabel("times the trace's rate")
    axes.set_ylabel("goodput (requests/s)")
    axes.legend()
    figure.savefig(path, dpi=150)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures what a placement costs, and by simulation what it is worth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="the highest load and short mixes, within a minute")
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help="of requests in Mooncake's form (default: made agent traffic)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of made traffic (default: 0)")
    add("--seeds", type=int, default=1, metavar="N", help="as many seeds, from that one on (default: 1)")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    add("--plot", type=Path, metavar="FILE", help="writes goodput by load and policy there, as PNG")
    return result


if __name__ == "__main__":
    main()
