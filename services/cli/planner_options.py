"""The planner's options, and the rules that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from baton.cli.option_groups import OptionGroup
from baton.cli.options import option
from baton.errors import ConfigError
from baton.router.elastic import PlannerMode, PlannerSettings
from baton.router.planner.rules import Bounds, PlannerRules, Window
from baton.router.scalers import NONE, ScalerAddress, checked_credentials, checked_scaler

LOCAL = "local"
"""The scaler that `baton up` is for its own routers, which know it by its socket."""
_WINDOW = re.compile(
    r"(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)(?: prefill=(?P<prefill>\S+))?(?: decode=(?P<decode>\S+))?"
    r"(?: workers=(?P<workers>\S+))?"
)


@dataclass(frozen=True, slots=True)
class PlannerOptions(OptionGroup):
    SECRETS = ("scaler_token", "scaler_key")

    planner: Annotated[
        PlannerMode,
        option(
            help="Whether workers change roles as traffic does: off; advise (decides and tells, changes nothing); "
            "on.",
            envvar="BATON_PLANNER",
        ),
    ] = PlannerMode.OFF
    planner_ttft: Annotated[
        float,
        option(
            help="Seconds to the first token that the planner plans for.",
            envvar="BATON_PLANNER_TTFT",
            min=0.001,
        ),
    ] = 2.0
    planner_tpot: Annotated[
        float,
        option(
            help="Seconds for each later token that the planner plans for.",
            envvar="BATON_PLANNER_TPOT",
            min=0.0001,
        ),
    ] = 0.1
    planner_prefill: Annotated[
        str, option(help="Fewest and most prefill workers, as 1-4 or 1-.", envvar="BATON_PLANNER_PREFILL")
    ] = "1-"
    planner_decode: Annotated[
        str, option(help="Fewest and most decode workers, as 1-4 or 1-.", envvar="BATON_PLANNER_DECODE")
    ] = "1-"
    planner_flips_per_hour: Annotated[
        int | None,
        option(
            help="Role changes in any hour at most. Default: 30, or two for each worker where that is more.",
            envvar="BATON_PLANNER_FLIPS_PER_HOUR",
            min=0,
        ),
    ] = None
    planner_cooldown: Annotated[
        float,
        option(
            help="Seconds after a role change in which none goes the other way.",
            envvar="BATON_PLANNER_COOLDOWN",
            min=1.0,
        ),
    ] = 120.0
    planner_window: Annotated[
        list[str] | None,
        option(
            help="Other bounds at a time of day (UTC), as '22:00-06:00 prefill=1-2 decode=4- workers=5-8'; repeat "
            "for more.",
            envvar="BATON_PLANNER_WINDOW",
        ),
    ] = None
    rescue_after: Annotated[
        float,
        option(
            help="Seconds without any decode worker after which a prefill worker takes their place, planner or "
            "not, unless it is only to advise.",
            envvar="BATON_RESCUE_AFTER",
            min=0,
        ),
    ] = 5.0
    planner_workers: Annotated[
        str | None,
        option(
            help="Fewest and most workers in both pools together, as 2-8; where the planner starts and stops them.",
            envvar="BATON_PLANNER_WORKERS",
        ),
    ] = None
    planner_scale_in_after: Annotated[
        float,
        option(
            help="Seconds for which fewer workers would have done before one is stopped.",
            envvar="BATON_PLANNER_SCALE_IN_AFTER",
            min=10.0,
        ),
    ] = 300.0
    planner_scales_per_hour: Annotated[
        int,
        option(
            help="Orders to start or stop workers in any hour at most.",
            envvar="BATON_PLANNER_SCALES_PER_HOUR",
            min=0,
        ),
    ] = 12
    scaler: Annotated[
        str,
        option(
            help="Who starts and stops workers at the planner's word: none, local (baton up itself), or the URL "
            "that orders are posted to.",
            envvar="BATON_SCALER",
        ),
    ] = NONE
    scaler_token: Annotated[
        str | None,
        option(
            help="Bearer token for the scaler's URL. Best given as BATON_SCALER_TOKEN.",
            envvar="BATON_SCALER_TOKEN",
            show_default=False,
        ),
    ] = None
    scaler_key: Annotated[
        str | None,
        option(
            help="Key that orders are signed with for the scaler's URL. Best given as BATON_SCALER_KEY.",
            envvar="BATON_SCALER_KEY",
            show_default=False,
        ),
    ] = None

    def settings(self) -> PlannerSettings:
        """Raises ConfigError naming the option."""
        rules = PlannerRules(
            ttft_s=self.planner_ttft,
            tpot_s=self.planner_tpot,
            prefill=_bounds(self.planner_prefill, "planner_prefill", at_least=0),
            decode=_bounds(self.planner_decode, "planner_decode", at_least=1),
            windows=tuple(self._window(text) for text in self.planner_window or []),
            cooldown_s=self.planner_cooldown,
            flips_per_hour=self.planner_flips_per_hour,
            rescue_after_s=self.rescue_after,
            workers=self._worker_bounds(),
            scale_in_after_s=self.planner_scale_in_after,
            scales_per_hour=self.planner_scales_per_hour,
        )
        return PlannerSettings(self.planner, rules, scaler=self._checked_scaler())

    def arguments(self) -> dict[str, object]:
        self.settings()
        return OptionGroup.arguments(self)

    def _worker_bounds(self) -> Bounds | None:
        if self.planner_workers is None:
            return None
        if self.planner is PlannerMode.ON and self.scaler == NONE:
            raise ConfigError("planner_workers needs a scaler: local, or a URL", field="planner_workers")
        return _limited(self.planner_workers, "planner_workers")

    def _window(self, text: str) -> Window:
        window = _window(text)
        if window.workers is not None and self.planner_workers is None:
            raise ConfigError(f"planner_window {text!r} counts on planner_workers", field="planner_window")
        return window

    def _checked_scaler(self) -> ScalerAddress:
        if self.scaler != NONE and (self.planner_workers is None or self.planner is PlannerMode.OFF):
            raise ConfigError(
                "a scaler needs planner on or advise, and planner_workers to say how many workers there may be",
                field="scaler",
            )
        address = ScalerAddress(self.scaler, self.scaler_token or "", self.scaler_key or "")
        return checked_credentials(address) if self.scaler == LOCAL else checked_scaler(address)


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
