"""Recorded traces, by path.

`.jsonl`: a line as in the traces published with Mooncake (Qin et al., FAST 2025): `timestamp` (ms),
`input_length`, `output_length` (tokens), `hash_ids` (of blocks of 512 tokens; equal ids, equal prefix).

`.csv`: columns `timestamp`, `input_length`, `output_length` and, where wanted, `session`; prompts of one session
continue one another, so that they share their prefix as far as both reach.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from baton.errors import ConfigError
from baton.sim.workload import SimRequest, Workload, hash_of

_MOONCAKE_BLOCK_TOKENS = 512
_CSV_BLOCK_TOKENS = 64
_MAX_TOKENS = 10_000_000
_LENGTHS = ("input_length", "output_length")


class TraceError(ConfigError):
    """A trace cannot be read; the message names file, line and field."""

    code = "trace_error"


def read_trace(path: Path) -> Workload:
    """Raises TraceError. The first request arrives at 0, whatever its timestamp is."""
    readers = {".jsonl": (_read_jsonl, _MOONCAKE_BLOCK_TOKENS), ".csv": (_read_csv, _CSV_BLOCK_TOKENS)}
    if path.suffix not in readers:
        raise TraceError(f"{path}: traces end in {' or '.join(readers)}", field="trace")
    read, block_tokens = readers[path.suffix]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            requests = list(_in_order(path, read(path, file)))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}", field="trace") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: {error}", field="trace") from error
    if not requests:
        raise TraceError(f"{path}: no request in it", field="trace")
    return Workload(path.stem, block_tokens, requests)


def _in_order(path: Path, rows: Iterable[tuple[int, SimRequest]]) -> Iterator[SimRequest]:
    last_s = 0.0
    for line, request in rows:
        if request.arrival_s < last_s:
            raise _error(path, line, "timestamp", "is smaller than that of the line before")
        last_s = request.arrival_s
        yield request


def _read_jsonl(path: Path, file: TextIO) -> Iterator[tuple[int, SimRequest]]:
    first_ms: float | None = None
    for number, (line, text) in enumerate((n, t) for n, t in enumerate(file, start=1) if t.strip()):
        try:
            row = json.loads(text)
        except ValueError as error:
            raise _error(path, line, "line", f"is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise _error(path, line, "line", "is no JSON object")
        timestamp_ms, lengths = _figures(path, line, row)
        ids, full = row.get("hash_ids"), lengths[0] // _MOONCAKE_BLOCK_TOKENS
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
            raise _error(path, line, "hash_ids", f"is {str(ids)[:40]!r}, not a list of numbers from 0")
        if len(ids) < full:
            raise _error(path, line, "hash_ids", f"has {len(ids)} ids, the prompt fills {full} blocks")
        first_ms = timestamp_ms if first_ms is None else first_ms
        hashes = tuple(hash_of(i) for i in ids[:full])
        yield line, SimRequest(number, (timestamp_ms - first_ms) / 1000, *lengths, hashes)


def _read_csv(path: Path, file: TextIO) -> Iterator[tuple[int, SimRequest]]:
    rows = csv.DictReader(file)
    missing = {"timestamp", *_LENGTHS} - set(rows.fieldnames or ())
    if missing:
        raise _error(path, 1, min(missing), "is no column of the header")
    sessions: dict[str, int] = {}
    first_ms: float | None = None
    for number, row in enumerate(rows):
        timestamp_ms, lengths = _figures(path, rows.line_num, {k: _number(v) for k, v in row.items() if k})
        session = row.get("session") or None
        stream = sessions.setdefault(session, len(sessions)) if session else -number - 1
        first_ms = timestamp_ms if first_ms is None else first_ms
        hashes = tuple(hash_of(stream % 2**64, block) for block in range(lengths[0] // _CSV_BLOCK_TOKENS))
        yield (
            rows.line_num,
            SimRequest(number, (timestamp_ms - first_ms) / 1000, *lengths, hashes, session_key=session),
        )


def _number(text: str | None) -> object:
    """What JSON would make of a cell, and the text itself where that is no number."""
    try:
        return float(text or "") if "." in (text or "") else int(text or "")
    except ValueError:
        return text


def _figures(path: Path, line: int, row: Mapping[str, object]) -> tuple[float, tuple[int, int]]:
    timestamp_ms = row.get("timestamp")
    if (
        not isinstance(timestamp_ms, int | float)
        or isinstance(timestamp_ms, bool)
        or not 0 <= timestamp_ms < 1e15
    ):
        raise _error(path, line, "timestamp", f"is {timestamp_ms!r}, not milliseconds from 0")
    lengths = [row.get(name) for name in _LENGTHS]
    for name, value in zip(_LENGTHS, lengths, strict=True):
        if type(value) is not int or not 1 <= value <= _MAX_TOKENS:
            raise _error(path, line, name, f"is {value!r}, not a number of tokens from 1 to {_MAX_TOKENS}")
    prompt_tokens, output_tokens = (value for value in lengths if isinstance(value, int))
    return float(timestamp_ms), (prompt_tokens, output_tokens)


def _error(path: Path, line: int, field: str, what: str) -> TraceError:
    return TraceError(f"{path}: line {line}: {field} {what}", field=field)
