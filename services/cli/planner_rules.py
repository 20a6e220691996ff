"""The planner's options as the rules that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from baton.errors import ConfigError
from baton.router.elastic import PlannerMode, PlannerSettings
from baton.router.planner.rules import Bounds, PlannerRules, Window

_WINDOW = re.compile(
    r"(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)(?: prefill=(?P<prefill>\S+))?(?: decode=(?P<decode>\S+))?"
)


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """As the command line has them, under its names but for the leading `planner_`; ttft_s, tpot_s, cooldown_s,
    rescue_after_s: seconds. Raises ConfigError naming the option."""

    mode: PlannerMode
    ttft_s: float
    tpot_s: float
    prefill: str
    decode: str
    flips_per_hour: int
    cooldown_s: float
    windows: list[str] | None
    rescue_after_s: float

    def settings(self) -> PlannerSettings:
        rules = PlannerRules(
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
            prefill=_bounds(self.prefill, "planner_prefill", at_least=0),
            decode=_bounds(self.decode, "planner_decode", at_least=1),
            windows=tuple(_window(text) for text in self.windows or []),
            cooldown_s=self.cooldown_s,
            flips_per_hour=self.flips_per_hour,
            rescue_after_s=self.rescue_after_s,
        )
        return PlannerSettings(self.mode, rules)

    def arguments(self) -> dict[str, object]:
        """For a router's own command line. What is wrong raises here rather than there."""
        self.settings()
        return {
            "planner": self.mode.value,
            "planner-ttft": self.ttft_s,
            "planner-tpot": self.tpot_s,
            "planner-prefill": self.prefill,
            "planner-decode": self.decode,
            "planner-flips-per-hour": self.flips_per_hour,
            "planner-cooldown": self.cooldown_s,
            "planner-window": self.windows,
            "rescue-after": self.rescue_after_s,
        }


def _bounds(text: str, field: str, at_least: int) -> Bounds:
    """`2-6`, or `2-` without an upper limit."""
    match = re.fullmatch(r"(\d{1,6})-(\d{0,6})", text)
    if match is None:
        raise ConfigError(f"{field} {text!r} is not of the form 2-6 or 2-", field=field)
    least, most = int(match[1]), int(match[2]) if match[2] else None
    if least < at_least or (most is not None and most < max(1, least)):
        raise ConfigError(f"{field} {text!r}: from at least {at_least} up to no less than that", field=field)
    return Bounds(least, most)


def _window(text: str) -> Window:
    """`22:00-06:00 prefill=1-2 decode=4-`, UTC."""
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"planner_window {text!r} is not of the form '22:00-06:00 prefill=1-2 decode=4-'",
            field="planner_window",
        )
    prefill, decode = match["prefill"], match["decode"]
    return Window(
        _day_s(match["from"]),
        _day_s(match["to"]),
        None if prefill is None else _bounds(prefill, "planner_window", at_least=0),
        None if decode is None else _bounds(decode, "planner_window", at_least=1),
    )


def _day_s(clock: str) -> float:
    hours, minutes = int(clock[:2]), int(clock[3:])
    if hours > 23 or minutes > 59:
        raise ConfigError(f"planner_window: there is no {clock}", field="planner_window")
    return 3600.0 * hours + 60.0 * minutes
