"""Holds `baton sim` against a live cluster: the same requests, once sent and once simulated.

`python benchmarks/truth.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import rows
from live_cluster import running
from quick import parsed
from random_model import make_servable, vocabulary
from rich.console import Console
from rows import Row
from scaled_workload import BLOCK_TOKENS, at_load, followed_by, generated, later, traced
from truth_live import Latencies, Live, fronts_s, mean_start_s

from baton.engine.model_config import ModelConfig
from baton.fleet import Role, WorkerProfile
from baton.sim.fleet_file import FleetSpec, HardwareProfile, Objectives, Pool
from baton.sim.ride import Outcome
from baton.sim.simulation import Simulation
from baton.sim.workload import Workload

EXAMPLES = """
examples:
  python benchmarks/truth.py --quick
  python benchmarks/truth.py --workload chat --json truth.json --plot truth.png
  python benchmarks/truth.py --trace requests.jsonl --skip 1000

what is compared:
  a router, one prefill and one decode worker, each a process, with a model of random weights. First earlier
  requests of the same workload pass through, from which the workers learn their profiles: some at a rate by
  what the workers measured of themselves at rest, the others at that of the test. What the latters' first
  tokens took beside the workers' own time is what client, HTTP, router and RPC take. Then all is frozen,
  the requests of the test are sent, and simulated with what is known by then: nothing is fitted to the
  answer. The earlier requests are simulated as well, for caches hold what these left there, and all of it
  several times, for steps and hand-offs spread. Lengths are scaled down, so that two cores can serve them;
  prefixes that the workload shares are shared tokens. The rate is such that the busier worker is expected to
  be busy for --load of the time. "meanwhile" is what the workers reported of their speed during the test: a
  machine that has become slower is no fault of the model.
"""
MS = 1000.0
CHUNK_TOKENS = 256
HEARTBEAT_S = 0.25
SETTLE_S = 1.0
LEARNING = 3
"""One in so many of the earlier requests comes first: then it is known at which rate the others are to come."""

QUICK = {"requests": 60, "calibration": 40}
OBJECTIVES = Objectives(tpot=1e-9)
"""`baton up` has none, and hands off every prompt that is not almost cached; so it does where none can be kept."""

DRAWS = 16
"""Simulations of the same requests, each with a seed of its own."""

PROFILES = ("corrected", "meanwhile", "at start")
TARGETS = {50: 10.0, 90: 20.0}


@dataclass(frozen=True, slots=True)
class Known:
    """What a simulation goes by: both workers' profiles as reported, what first tokens took beside them, and the
    word of these to the decode worker."""

    prefill: WorkerProfile
    decode: WorkerProfile
    fronts_s: tuple[float, ...] = (0.0,)
    handoff_start_s: float = 0.0


def sent_of(options: argparse.Namespace, skip: int, count: int, by: Known) -> Workload:
    """`count` requests after the first `skip`, at a rate that is --load by what is known."""
    return at_load(_unscaled(options, skip, count), by.prefill, by.decode, options.load)


def _unscaled(options: argparse.Namespace, skip: int, count: int) -> Workload:
    if options.trace is not None:
        return traced(options.trace, options.skip + skip, count, options.output_scale)
    return generated(options.workload, skip, count, options.seed, options.output_scale)


def simulate(before: Workload, test: Workload, known: Known, model: ModelConfig, kv_tokens: int) -> Latencies:
    """What `baton sim` makes of `test` after `before`, both on one clock, with what is beside the workers added to
    each first token: one of those that were seen. Of all draws together: one draw's percentiles are chance where
    few requests lie near them."""
    pools = tuple(
        Pool(role.value, role, 1, _hardware(profile, model, kv_tokens), 0.0)
        for role, profile in ((Role.PREFILL, known.prefill), (Role.DECODE, known.decode))
    )
    spec = FleetSpec(
        pools=pools,
        objectives=OBJECTIVES,
        chunk_tokens=CHUNK_TOKENS,
        max_running=256,
        max_requests=1024,
        queue_timeout_s=60.0,
        local_prefill_tokens=64,
        heartbeat_s=HEARTBEAT_S,
        handoff_start_s=known.handoff_start_s,
        kv_events=True,
    )
    ttfts_s: list[float] = []
    tpots_s: list[float] = []
    for seed in range(DRAWS):
        draw = Random(seed)
        rides = Simulation(spec, followed_by(before, test), seed=seed).run().rides
        tested = [ride for ride in rides if ride.number >= len(before.requests)]
        ended = [ride for ride in tested if ride.outcome is Outcome.FINISHED]
        ttfts_s += [r.ttft_s + draw.choice(known.fronts_s) for r in ended if r.ttft_s is not None]
        tpots_s += [ride.tpot_s for ride in ended if ride.tpot_s is not None]
    return Latencies(ttfts_s, tpots_s)


def _hardware(profile: WorkerProfile, model: ModelConfig, kv_tokens: int) -> HardwareProfile:
    latency_s, bytes_per_s = profile.same_host_link  # simulated workers have hosts of their own
    linked = replace(profile, handoff_latency_s=latency_s, copy_bytes_per_s=bytes_per_s)
    return HardwareProfile.of(linked, model.kv_block_bytes(BLOCK_TOKENS) // BLOCK_TOKENS, kv_tokens)


async def measure(
    url: str, options: argparse.Namespace, model_folder: Path, event_log: Path, console: Console
) -> dict[str, Latencies]:
    """By name: `live`, and simulated from the profiles `at start`, `corrected` before the test and `meanwhile`."""
    live = Live(url, vocabulary(model_folder))
    start = Known(*live.profiles())
    console.print("learning")
    learning = options.calibration // LEARNING
    first = await live.replay(sent_of(options, 0, learning, start))
    await asyncio.sleep(SETTLE_S)
    console.print("calibrating")
    before = await live.replay(
        sent_of(options, learning, options.calibration - learning, Known(*first.reported))
    )
    await asyncio.sleep(SETTLE_S)
    known = Known(*before.reported, fronts_s(before.answers, event_log), mean_start_s(event_log))
    console.print(
        f"known: {known.prefill}, {known.decode}, beside them {np.median(known.fronts_s) * MS:.1f} ms"
    )
    test = sent_of(options, options.calibration, options.requests, known)
    console.print(f"sending {len(test.requests)} requests in {test.requests[-1].arrival_s:.0f} s")
    observed = await live.replay(test)
    model = ModelConfig.from_folder(model_folder, "auto", None)
    kv_tokens = options.kv_blocks * BLOCK_TOKENS
    earlier = followed_by(first.sent, later(before.sent, before.began_at_s - first.began_at_s))
    shifted = later(test, observed.began_at_s - first.began_at_s)
    told = {
        "corrected": known,
        "meanwhile": replace(known, prefill=observed.reported[0], decode=observed.reported[1]),
        "at start": replace(known, prefill=start.prefill, decode=start.decode),
    }
    simulated = {name: simulate(earlier, shifted, by, model, kv_tokens) for name, by in told.items()}
    return {"live": observed.latencies(), **simulated}


def figures(told: dict[str, Latencies]) -> list[Row]:
    """Errors of the simulation, in percent of what was observed."""
    result = []
    for profile in PROFILES:
        for name, of in (("TTFT", _ttft), ("TPOT", _tpot)):
            for percent, target in TARGETS.items():
                live_s, sim_s = (float(np.percentile(of(told[key]), percent)) for key in ("live", profile))
                result.append(
                    Row(
                        name=f"{name} p{percent}, profile {profile}: {sim_s * MS:.1f} for {live_s * MS:.1f} ms",
                        value=100 * abs(sim_s / live_s - 1),
                        unit="% off",
                        target=target if profile == "corrected" else None,
                    )
                )
    return result


def _ttft(latencies: Latencies) -> list[float]:
    return latencies.ttft_s


def _tpot(latencies: Latencies) -> list[float]:
    return latencies.tpot_s


def plot(told: dict[str, Latencies], path: Path) -> None:
    """Quantiles of the simulation against those observed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    percents = np.arange(1, 100)
    of_each: tuple[tuple[str, Callable[[Latencies], list[float]]], ...] = (("TTFT", _ttft), ("TPOT", _tpot))
    for axes, (name, of) in zip(figure.subplots(1, 2), of_each, strict=True):
        live_ms = np.percentile(of(told["live"]), percents) * MS
        for profile in PROFILES:
            axes.plot(
                live_ms, np.percentile(of(told[profile]), percents) * MS, ".", label=f"profile {profile}"
            )
        axes.plot(live_ms, live_ms, color="grey", linewidth=1)
        axes.set(title=name, xlabel="live (ms)", ylabel="simulated (ms)", xscale="log", yscale="log")
        axes.legend()
    figure.savefig(path)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Holds `baton sim` against a live cluster of two workers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="few requests, within a minute or two")
    add("--trace", type=Path, metavar="FILE", help="requests of a trace, as `baton sim` reads it")
    add("--skip", type=int, default=0, metavar="N", help="leave out the first N requests of the trace")
    add(
        "--workload",
        default="chat",
        metavar="NAME",
        help="without a trace, as of `baton sim` (default: chat)",
    )
    add("--requests", type=int, default=300, metavar="N", help="of the test (default: 300)")
    add("--calibration", type=int, default=300, metavar="N", help="requests before it (default: 300)")
    add("--load", type=float, default=0.5, metavar="X", help="share of busy time (default: 0.5)")
    add("--output-scale", type=float, default=0.125, metavar="X", help="of answers' lengths (default: 0.125)")
    add("--kv-blocks", type=int, default=4096, metavar="N", help="of each pool (default: 4096)")
    add("--seed", type=int, default=0, metavar="N", help="of a workload (default: 0)")
    add("--up", action="append", default=[], metavar="FLAG", help="further option of `baton up`; repeat")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    add("--plot", type=Path, metavar="FILE", help="draws quantiles there, as PNG (needs matplotlib)")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(parser(), arguments, QUICK)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        make_servable(Path(folder))
        event_log = Path(folder) / "events.jsonl"
        flags = [f"--model={folder}", f"--chunk-tokens={CHUNK_TOKENS}", f"--kv-blocks={options.kv_blocks}"]
        with running([*flags, f"--event-log={event_log}", *options.up]) as url:
            told = asyncio.run(measure(url, options, Path(folder), event_log, console))
    shown = figures(told)
    rows.publish(shown, f"{options.trace or options.workload}, {options.requests} requests", options.json)
    if options.plot is not None:
        plot(told, options.plot)


if __name__ == "__main__":
    main()
