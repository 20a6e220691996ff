"""`baton plan`: what the planner of a router thinks now."""

from __future__ import annotations

from typing import Any

import httpx
from rich.console import Console, Group, RenderableType
from rich.table import Table

from baton.cli.ask import ask
from baton.errors import Unavailable

_TIMEOUT_S = 10.0


def show_plan(url: str, api_key: str) -> None:
    Console().print(plan_view(url, api_key))


def plan_view(url: str, api_key: str) -> RenderableType:
    """The pools as a table and the decision below it. Raises Unavailable where there is no planner to ask."""
    planner = ask(url, api_key, "GET", "/server_info", httpx.Timeout(_TIMEOUT_S)).get("planner")
    if planner is None:
        raise Unavailable(f"{url} has no planner, or it has not decided yet: see --planner of `baton router`")
    return Group(_pools(planner["pools"]), *_decision(planner))


def _pools(pools: dict[str, dict[str, Any]]) -> Table:
    table = Table("pool")
    for name in ("workers", "arriving", "pressure", "within objective", "waiting"):
        table.add_column(name, justify="right")
    for role, load in pools.items():
        counts = str(load["workers"]), str(load["arriving"])
        shares = f"{load['pressure']:.2f}", f"{load['attainment']:.0%}"
        table.add_row(role, *counts, *shares, f"{load['waiting']:,}")
    return table


def _decision(planner: dict[str, Any]) -> list[str]:
    acts = planner["mode"] == "on" and planner["leads"]
    lines = [_told(action, acts) for action in planner["actions"]]
    return [*lines, planner["reason"]]


def _told(action: dict[str, Any], acts: bool) -> str:
    would = "" if acts else "would "
    s = "s" if acts else ""
    match action["action"]:
        case "flip":
            return f"{would}make{s} {action['worker']} a {action['role']} worker"
        case "start":
            return f"{would}start{s} {action['role']} workers until there are {action['workers']} in all"
        case _:
            return f"{would}stop{s} {action['worker']}"
