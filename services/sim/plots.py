"""A run as pictures: how latencies are distributed, and what the pools did over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from baton.errors import ConfigError
from baton.sim.simulation import Run
from baton.sim.sweep import ATTAINMENT, Split

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
except ImportError as error:
    raise ConfigError("plots need matplotlib: pip install 'baton[sim]'", field="plots") from error


def make_folder(folder: Path) -> None:
    """Where it does not exist. Raises ConfigError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", field="plots") from error


def write_plots(run: Run, folder: Path) -> None:
    """`latency.png` and `pools.png` in `folder`. Raises ConfigError where that cannot be written."""
    _write(folder, {"latency.png": _latency(run), "pools.png": _pools(run)})


def write_sweep_plot(splits: Sequence[Split], folder: Path) -> None:
    """`goodput.png`: for each split, how many requests meet their objectives at which rate."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for split in splits:
        offered_rps = [point.offered_rps for point in split.points]
        label = f"{split.prefill_workers} prefill, {split.decode_workers} decode"
        axes.plot(offered_rps, [point.attainment for point in split.points], marker=".", label=label)
    axes.axhline(ATTAINMENT, linestyle="--", color="grey")
    axes.set(xlabel="requests/s offered", ylabel="share that met both objectives", ylim=(0, 1.02))
    axes.legend()
    _write(folder, {"goodput.png": figure})


def _write(folder: Path, figures: Mapping[str, Figure]) -> None:
    try:
        for name, figure in figures.items():
            figure.savefig(folder / name)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", field="plots") from error


def _latency(run: Run) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    ttft, tpot = figure.subplots(1, 2)
    objectives = run.spec.objectives
    _distribution(ttft, "TTFT", [ride.ttft_s for ride in run.rides], objectives.ttft)
    _distribution(tpot, "TPOT", [ride.tpot_s for ride in run.rides], objectives.tpot)
    return figure


def _distribution(axes: Axes, name: str, values_s: list[float | None], objective_s: float) -> None:
    """Share of requests up to each latency, of those that have one."""
    sorted_s = np.sort([value_s for value_s in values_s if value_s is not None])
    axes.plot(sorted_s, np.arange(1, len(sorted_s) + 1) / max(1, len(sorted_s)))
    axes.axvline(objective_s, linestyle="--", color="grey", label=f"objective {objective_s:g} s")
    axes.set(title=name, xlabel="seconds", ylabel="share of requests", xscale="log", ylim=(0, 1))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right")


def _pools(run: Run) -> Figure:
    figure = Figure(figsize=(10, 9), layout="constrained")
    queue, running, memory, workers = figure.subplots(4, 1, sharex=True)
    at_s = [sample.at_s for sample in run.samples]
    queue.plot(at_s, [sample.queued_tokens for sample in run.samples])
    queue.set(ylabel="prompt tokens queued")
    running.plot(at_s, [sample.running for sample in run.samples])
    running.set(ylabel="sequences running")
    memory.plot(at_s, [100 * sample.kv_used for sample in run.samples])
    memory.set(ylabel="decode KV held, %", ylim=(0, 100))
    for role in ("prefill", "decode"):
        counts = [getattr(sample, role) for sample in run.samples]
        workers.plot(at_s, counts, drawstyle="steps-post", label=role)
    most = max((sample.prefill + sample.decode for sample in run.samples), default=1)
    workers.set(ylabel="workers that take requests", xlabel="seconds", ylim=(0, most))
    workers.yaxis.set_major_locator(MaxNLocator(integer=True))
    workers.legend()
    return figure
