"""A report for reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table

from baton.sim.report import Latency, PoolReport, Report
from baton.sim.sweep import ATTAINMENT, Split


def render(report: Report) -> RenderableType:
    return Group(_latencies(report), _pools(report.pools), _figures(report))


def render_splits(splits: Sequence[Split]) -> Table:
    table = Table(title=f"goodput at {ATTAINMENT:.0%}")
    for name in ("prefill", "decode", "requests/s", ""):
        table.add_column(name, justify="right")
    best = max(split.goodput_rps for split in splits)
    for split in splits:
        note = "best" if split.goodput_rps == best else ""
        goodput = f"{'' if split.is_bounded else '≥ '}{split.goodput_rps:,.2f}"
        table.add_row(str(split.prefill_workers), str(split.decode_workers), goodput, note)
    if not all(split.is_bounded for split in splits):
        table.caption = "≥: too few requests to tell"
    return table


def _latencies(report: Report) -> Table:
    table = Table(title=f"{report.workload}, policy {report.policy}")
    table.add_column("milliseconds")
    for name in ("mean", "p50", "p90", "p95", "p99"):
        table.add_column(name, justify="right")
    rows = {
        "TTFT": report.ttft_s,
        "TPOT": report.tpot_s,
        "ITL": report.itl_s,
        "end to end": report.e2e_s,
    }
    for name, latency in rows.items():
        table.add_row(name, *_milliseconds(latency))
    return table


def _milliseconds(latency: Latency) -> Iterator[str]:
    for value_s in (latency.mean, latency.p50, latency.p90, latency.p95, latency.p99):
        yield "" if value_s is None else f"{1000 * value_s:,.1f}"


def _pools(pools: list[PoolReport]) -> Table:
    table = Table(Column("pool", overflow="fold"), "role")
    for name in ("workers", "busy", "busiest : mean", "cost"):
        table.add_column(name, justify="right")
    for pool in pools:
        busy, hottest, cost = f"{pool.utilisation:.1%}", f"{pool.hottest:.2f}", f"{pool.cost:,.2f}"
        table.add_row(pool.name, pool.role, f"{pool.mean_workers:,.4g}", busy, hottest, cost)
    return table


def _figures(report: Report) -> Table:
    table = Table(show_header=False)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    rows = {
        "requests": f"{report.requests}: {outcomes}",
        "duration": f"{report.duration_s:,.1f} s",
        "met both objectives": f"{report.attainment:.1%}",
        "goodput": f"{report.goodput_rps:.2f} of {report.request_rps:.2f} requests/s",
        "prompt tokens": f"{report.prompt_tokens_per_s:,.0f}/s",
        "output tokens": f"{report.output_tokens_per_s:,.0f}/s",
        "cache hit rate": f"{report.cache_hit_rate:.1%} of tokens, {report.unlimited_hit_rate:.1%} at most",
        "local prefills": str(report.local_prefills),
        "preemptions": str(report.preemptions),
        "role changes": str(report.flips),
        "workers": f"{report.workers_started} started, {report.workers_stopped} stopped",
        "handed off": f"{report.handoff_bytes / 1e9:,.1f} GB",
        "cost": f"{report.cost:,.2f}, {report.cost_per_hour:,.2f} an hour",
        "cost per million tokens": (
            f"{report.cost_per_million_tokens:.3f}, of output alone {report.cost_per_million_output_tokens:.2f}"
        ),
        "TTFT less predicted": (
            f"median {1000 * report.ttft_error_median_s:.1f} ms, "
            f"p90 of its size {1000 * report.ttft_error_size_p90_s:.1f} ms"
        ),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
