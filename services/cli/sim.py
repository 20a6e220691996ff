"""`baton sim`: tries a fleet on a virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli import options as opt
from baton.cli.process_setup import checked_policy
from baton.errors import ConfigError
from baton.router.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from baton.sim.fleet_file import FleetSpec
    from baton.sim.workload import Workload

_DEFAULT_WORKLOAD = "chat"

FleetFile = Annotated[Path, typer.Argument(help="TOML file with the fleet's pools.", show_default=False)]
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Requests to send: .jsonl in Mooncake's form, or .csv.", envvar="BATON_TRACE", show_envvar=False
    ),
]
WorkloadName = Annotated[
    str | None,
    typer.Option(
        help="Without a trace: chat, agent, prompt-heavy, output-heavy or shared-prefix. Default: chat.",
        envvar="BATON_WORKLOAD",
        show_envvar=False,
    ),
]
Requests = Annotated[
    int,
    typer.Option(help="Of a workload.", envvar="BATON_REQUESTS", show_envvar=False, min=1, max=10_000_000),
]
Rate = Annotated[
    float,
    typer.Option(help="Of a workload, requests a second.", envvar="BATON_RATE", show_envvar=False, min=1e-6),
]
Speed = Annotated[
    float,
    typer.Option(
        help="Requests arrive this many times as fast.", envvar="BATON_SPEED", show_envvar=False, min=1e-6
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed, the same output.", envvar="BATON_SEED", show_envvar=False, min=0, max=2**63 - 1
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write the figures there too.", envvar="BATON_JSON", show_envvar=False),
]
Plots = Annotated[
    Path | None,
    typer.Option(
        help="Write latency.png and pools.png, or for a sweep goodput.png, into this folder (needs matplotlib).",
        envvar="BATON_PLOTS",
        show_envvar=False,
    ),
]

Sweep = Annotated[
    bool,
    typer.Option(
        "--sweep",
        help="Find the highest rate that meets the objectives, for each split of the workers between prefill and "
        "decode.",
        envvar="BATON_SWEEP",
        show_envvar=False,
    ),
]


Planner = Annotated[
    bool,
    typer.Option(
        "--planner",
        help="Let workers change roles as traffic does, also where the fleet's file has no table \\[planner]. With "
        "max-workers in that table they come and leave as well.",
        envvar="BATON_PLANNER",
        show_envvar=False,
    ),
]


def sim(
    fleet: FleetFile,
    trace: Trace = None,
    workload: WorkloadName = None,
    requests: Requests = 2000,
    rate: Rate = 10.0,
    speed: Speed = 1.0,
    policy: opt.Policy = DEFAULT_POLICY,
    seed: Seed = 0,
    json: JsonFile = None,
    plots: Plots = None,
    sweep: Sweep = False,
    planner: Planner = False,
) -> None:
    """Try a fleet without its machines: replay a trace on a virtual clock, with the router's own placement.

    Example: baton sim fleet.toml --trace requests.jsonl --speed 4 --policy predicted --plots ./plots
    """
    from baton.sim.fleet_file import read_fleet, with_planner
    from baton.sim.generators import generate
    from baton.sim.trace import read_trace

    if trace is not None and workload is not None:
        raise ConfigError("--trace and --workload exclude each other", field="workload")
    checked_policy(policy)
    spec = read_fleet(fleet)
    if planner and spec.elastic is None:
        spec = with_planner(spec)
    _require_writable(json, plots)
    if trace is not None:
        sent = read_trace(trace)
    else:
        sent = generate(workload or _DEFAULT_WORKLOAD, requests, rate, seed)
    show = _sweep if sweep else _simulate
    show(spec, sent.at_rate(speed), policy, seed, json, plots)


def _simulate(
    spec: FleetSpec, sent: Workload, policy: str, seed: int, json: Path | None, plots: Path | None
) -> None:
    from baton.sim.report import report_of
    from baton.sim.simulation import Simulation
    from baton.sim.table import render

    with _progress() as progress:
        task = progress.add_task("requests", total=len(sent.requests))
        run = Simulation(spec, sent, policy, seed, lambda ride: progress.advance(task)).run()
    report = report_of(run)
    _print(render(report))
    if json is not None:
        _write(json, report.json())
    if plots is not None:
        from baton.sim.plots import write_plots

        write_plots(run, plots)


def _sweep(
    spec: FleetSpec, sent: Workload, policy: str, seed: int, json: Path | None, plots: Path | None
) -> None:
    from baton.sim.sweep import splits_json, sweep
    from baton.sim.table import render_splits

    with _progress() as progress:
        task = progress.add_task("runs", total=None)
        splits = list(sweep(spec, sent, policy, seed, lambda: progress.advance(task)))
    _print(render_splits(splits))
    if json is not None:
        _write(json, splits_json(splits))
    if plots is not None:
        from baton.sim.plots import write_sweep_plot

        write_sweep_plot(splits, plots)


def _require_writable(json: Path | None, plots: Path | None) -> None:
    """Before the run, which may be long. Raises ConfigError, also where matplotlib is missing."""
    if json is not None and not json.parent.is_dir():
        raise ConfigError(f"{json}: there is no folder {json.parent}", field="json")
    if plots is not None:
        from baton.sim.plots import make_folder

        make_folder(plots)


def _print(report: RenderableType) -> None:
    from rich.console import Console

    Console().print(report)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", field="json") from error
