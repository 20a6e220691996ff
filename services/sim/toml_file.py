"""TOML files as frozen structs: what is unknown, missing or malformed is named with file, line and field."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from baton.errors import ConfigError

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def read_toml(path: Path, type_: type[_Struct]) -> _Struct:
    """Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", field=path.name) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", field=path.name) from error
    try:
        return msgspec.convert(table, type_)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        keys = [*re.findall(r"[\w-]+", where), *re.findall(r"unknown field `([\w-]+)`", what)]
        line = _line_of(text, keys)
        raise ConfigError(f"{path}: line {line}: {what}", field=".".join(keys) or path.name) from error


def _line_of(text: str, keys: list[str]) -> int:
    """Where the last of `keys` stands, numbers among them counting tables of one name; else its table's line."""
    found = 1
    lines = text.splitlines()
    for key, after in zip(keys, [*keys[1:], ""], strict=True):
        if key.isdigit():
            continue
        wanted = int(after) if after.isdigit() else 0
        pattern = re.compile(rf"\s*(\[+\s*{re.escape(key)}\s*\]+|{re.escape(key)}\s*=)")
        matches = [n for n, line in enumerate(lines, start=1) if n >= found and pattern.match(line)]
        found = matches[min(wanted, len(matches) - 1)] if matches else found
    return found
