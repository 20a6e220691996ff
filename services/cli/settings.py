"""The TOML file and the environment: values for options that the command line does not give. A key or variable
that no option knows stops the process by its name."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from baton.errors import ConfigError

CONFIG_VARIABLE = "BATON_CONFIG"
_PREFIX = "BATON_"


def read_config_file(path: Path, group: TyperGroup) -> dict[str, dict[str, Any]]:
    """One table a command, one key an option, as `[up]` with `port = 8001`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", field="config") from error
    for name, table in tables.items():
        command = group.commands.get(name)
        if command is None or not isinstance(table, Mapping):
            raise ConfigError(
                f"{path}: no command is named {name!r}; tables: {', '.join(sorted(group.commands))}",
                field=name,
            )
        known = {parameter.name for parameter in command.params}
        for key in table:
            if key.replace("-", "_") not in known:
                raise ConfigError(f"{path}: [{name}] has no option {key!r}", field=f"{name}.{key}")
    return {
        name: {key.replace("-", "_"): value for key, value in table.items()} for name, table in tables.items()
    }


def check_environment(group: TyperGroup, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError for a BATON_ variable that no option reads."""
    known = {CONFIG_VARIABLE}
    for command in group.commands.values():
        for parameter in command.params:
            variables = parameter.envvar or ()
            known |= {variables} if isinstance(variables, str) else set(variables)
    for name in environment:
        if name.startswith(_PREFIX) and name not in known:
            raise ConfigError(f"environment variable {name} is not an option of Baton", field=name)
