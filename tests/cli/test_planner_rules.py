"""The planner's options: what they mean, and how wrong ones are refused."""

from __future__ import annotations

import pytest

from baton.cli.planner_rules import PlannerOptions
from baton.errors import ConfigError
from baton.fleet import Role
from baton.router.elastic import PlannerMode, PlannerSettings
from baton.router.planner.rules import Bounds


def settings(prefill: str = "1-", decode: str = "1-", windows: list[str] | None = None) -> PlannerSettings:
    return PlannerOptions(PlannerMode.ON, 1.0, 0.05, prefill, decode, 10, 60.0, windows, 5.0).settings()


def test_bounds_hold_all_day_but_for_the_windows_over_midnight_too() -> None:
    rules = settings("0-4", "2-", ["22:30-06:00 prefill=2-3", "12:00-13:00 decode=5-"]).rules
    noon_s, night_s, morning_s = 12.5 * 3600, 23 * 3600.0, 8 * 3600.0
    assert rules.bounds(morning_s) == {Role.PREFILL: Bounds(0, 4), Role.DECODE: Bounds(2, None)}
    assert rules.bounds(noon_s) == {Role.PREFILL: Bounds(0, 4), Role.DECODE: Bounds(5, None)}
    assert rules.bounds(night_s) == {Role.PREFILL: Bounds(2, 3), Role.DECODE: Bounds(2, None)}


@pytest.mark.parametrize("text", ["", "3", "4-2", "-3", "a-b", "0-0", "1-2-3"])
def test_wrong_bounds_are_refused_by_the_option_s_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(prefill=text)
    assert caught.value.field == "planner_prefill"


def test_a_fleet_without_decode_workers_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        settings(decode="0-2")


@pytest.mark.parametrize(
    "text", ["night", "22:00-06:00 prefill=x", "25:00-06:00", "22:00 prefill=1-", "22:00-6:00"]
)
def test_wrong_windows_are_refused_by_the_option_s_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(windows=[text])
    assert caught.value.field == "planner_window"
