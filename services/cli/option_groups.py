"""Options that belong together and that more than one command takes: a dataclass whose fields are the options.

A command names the group as one parameter, and `with_groups` shows typer the options in its place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Fields are named and typed as a command's parameters would be, and all have defaults. SECRETS: those that
    belong into no command line."""

    SECRETS: ClassVar[tuple[str, ...]] = ()

    def arguments(self) -> dict[str, object]:
        """By the options' names, for the command line of another process; without secrets. Raises ConfigError
        naming the option for what that process would refuse."""
        names = [field.name for field in fields(self) if field.name not in self.SECRETS]
        return {name.replace("_", "-"): getattr(self, name) for name in names}

    def secrets(self) -> dict[str, str]:
        """Those that are given, for the environment of another process; of several, blanks stand between them."""
        given = {name: getattr(self, name) for name in self.SECRETS}
        return {
            f"BATON_{name.upper()}": value if isinstance(value, str) else " ".join(value)
            for name, value in given.items()
            if value
        }


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, called with each group's options in place of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if _is_group(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        parameters += (
            _options(groups[name]) if name in groups else [parameter.replace(annotation=hints[name])]
        )

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # which `inspect` looks for
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _is_group(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, OptionGroup)


def _options(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(group).parameters.items()
    ]
