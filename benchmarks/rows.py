"""What every benchmark here hands out: a list of rows, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. Absent fields are null in JSON.

    peer, peer_value: what it was compared with in the same run, in `unit`. ratio: above 1 means that Baton is
    ahead. target: in the unit of `ratio`, or of `value` where there is no peer.
    """

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    target: float | None = None


def publish(rows: Sequence[Row], title: str, json: Path | None) -> None:
    """As a table on stdout and, where there is a `json`, in that file."""
    Console().print(table(rows, title))
    if json is not None:
        write_json(rows, json)


def write_json(rows: Sequence[Row], path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows to look at; columns that would be empty in all of them are left out."""
    shown = [name for name in Row.__struct_fields__ if any(getattr(row, name) is not None for row in rows)]
    result = Table(title=title)
    for name in shown:
        result.add_column(name, justify="left" if name in ("name", "unit", "peer") else "right")
    for row in rows:
        result.add_row(*(_cell(getattr(row, name)) for name in shown))
    return result


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
