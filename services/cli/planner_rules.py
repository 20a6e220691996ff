"""The planner's options as the rules that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from baton.errors import ConfigError
from baton.router.elastic import PlannerMode, PlannerSettings
from baton.router.planner.rules import Bounds, PlannerRules, Window
from baton.router.scalers import NONE, ScalerAddress, checked_scaler

LOCAL = "local"
"""The scaler that `baton up` is for its own routers, which know it by its socket."""
_WINDOW = re.compile(
    r"(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)(?: prefill=(?P<prefill>\S+))?(?: decode=(?P<decode>\S+))?"
    r"(?: workers=(?P<workers>\S+))?"
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
    workers: str | None = None
    scale_in_after_s: float = 300.0
    scales_per_hour: int = 12
    scaler: ScalerAddress = field(default_factory=ScalerAddress)

    def settings(self) -> PlannerSettings:
        rules = PlannerRules(
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
            prefill=_bounds(self.prefill, "planner_prefill", at_least=0),
            decode=_bounds(self.decode, "planner_decode", at_least=1),
            windows=tuple(self._window(text) for text in self.windows or []),
            cooldown_s=self.cooldown_s,
            flips_per_hour=self.flips_per_hour,
            rescue_after_s=self.rescue_after_s,
            workers=self._worker_bounds(),
            scale_in_after_s=self.scale_in_after_s,
            scales_per_hour=self.scales_per_hour,
        )
        return PlannerSettings(self.mode, rules, scaler=self._checked_scaler())

    def _worker_bounds(self) -> Bounds | None:
        if self.workers is None:
            return None
        if self.mode is PlannerMode.ON and self.scaler.address == NONE:
            raise ConfigError("planner_workers needs a scaler: local, or a URL", field="planner_workers")
        return _limited(self.workers, "planner_workers")

    def _window(self, text: str) -> Window:
        window = _window(text)
        if window.workers is not None and self.workers is None:
            raise ConfigError(f"planner_window {text!r} counts on planner_workers", field="planner_window")
        return window

    def _checked_scaler(self) -> ScalerAddress:
        if self.scaler.address != NONE and (self.workers is None or self.mode is PlannerMode.OFF):
            raise ConfigError(
                "a scaler needs planner on or advise, and planner_workers to say how many workers there may be",
                field="scaler",
            )
        return self.scaler if self.scaler.address == LOCAL else checked_scaler(self.scaler)

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
            "planner-workers": self.workers,
            "planner-scale-in-after": self.scale_in_after_s,
            "planner-scales-per-hour": self.scales_per_hour,
            "scaler": self.scaler.address,
        }

    def secrets(self) -> dict[str, str]:
        """Of `arguments`, what belongs into no command line, as environment variables."""
        named = {"BATON_SCALER_TOKEN": self.scaler.token, "BATON_SCALER_KEY": self.scaler.key}
        return {name: value for name, value in named.items() if value}


def _bounds(text: str, field: str, at_least: int) -> Bounds:
    """`2-6`, or `2-` without an upper limit."""
    match = re.fullmatch(r"(\d{1,6})-(\d{0,6})", text)
    if match is None:
        raise ConfigError(f"{field} {text!r} is not of the form 2-6 or 2-", field=field)
    least, most = int(match[1]), int(match[2]) if match[2] else None
    if least < at_least or (most is not None and most < max(1, least)):
        raise ConfigError(f"{field} {text!r}: from at least {at_least} up to no less than that", field=field)
    return Bounds(least, most)


def _limited(text: str, field: str) -> Bounds:
    bounds = _bounds(text, field, at_least=1)
    if bounds.most is None:
        raise ConfigError(f"{field} {text!r}: workers cost money, give an upper limit, as 2-8", field=field)
    return bounds


def _window(text: str) -> Window:
    """`22:00-06:00 prefill=1-2 decode=4- workers=5-8`, UTC."""
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"planner_window {text!r} is not of the form '22:00-06:00 prefill=1-2 decode=4- workers=5-8'",
            field="planner_window",
        )
    prefill, decode, workers = match["prefill"], match["decode"], match["workers"]
    return Window(
        _day_s(match["from"]),
        _day_s(match["to"]),
        None if prefill is None else _bounds(prefill, "planner_window", at_least=0),
        None if decode is None else _bounds(decode, "planner_window", at_least=1),
        None if workers is None else _limited(workers, "planner_window"),
    )


def _day_s(clock: str) -> float:
    hours, minutes = int(clock[:2]), int(clock[3:])
    if hours > 23 or minutes > 59:
        raise ConfigError(f"planner_window: there is no {clock}", field="planner_window")
    return 3600.0 * hours + 60.0 * minutes
