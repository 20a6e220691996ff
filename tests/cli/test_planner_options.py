"""The planner's options: what they mean, and how wrong ones are refused."""

from __future__ import annotations

import pytest

from baton.cli.planner_options import PlannerOptions
from baton.errors import ConfigError
from baton.fleet import Role
from baton.router.elastic import PlannerMode, PlannerSettings
from baton.router.planner.rules import Bounds


def settings(prefill: str = "1-", decode: str = "1-", windows: list[str] | None = None) -> PlannerSettings:
    options = PlannerOptions(
        PlannerMode.ON, planner_prefill=prefill, planner_decode=decode, planner_window=windows
    )
    return options.settings()


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


def scaled(
    mode: PlannerMode, workers: str | None, address: str, windows: list[str] | None = None
) -> PlannerSettings:
    return PlannerOptions(mode, planner_workers=workers, planner_window=windows, scaler=address).settings()


def test_a_scaler_is_told_how_many_workers_there_may_be_and_when() -> None:
    rules = scaled(PlannerMode.ON, "2-4", "local", ["22:00-06:00 workers=4-8"]).rules
    assert rules.worker_bounds(12 * 3600.0) == Bounds(2, 4)
    assert rules.worker_bounds(23 * 3600.0) == Bounds(4, 8)
    assert scaled(PlannerMode.ADVISE, "2-4", "none").rules.workers == Bounds(2, 4)


def test_only_a_webhook_takes_a_token() -> None:
    for address in ("local", "unix:/run/x"):
        with pytest.raises(ConfigError, match="only a webhook"):
            PlannerOptions(PlannerMode.ON, planner_workers="2-4", scaler=address, scaler_token="t").settings()


@pytest.mark.parametrize(
    ("mode", "workers", "address", "windows", "field"),
    [
        (PlannerMode.ON, "2-", "local", None, "planner_workers"),
        (PlannerMode.ON, "0-3", "local", None, "planner_workers"),
        (PlannerMode.ON, "2-4", "none", None, "planner_workers"),
        (PlannerMode.ON, None, "local", None, "scaler"),
        (PlannerMode.OFF, "2-4", "local", None, "scaler"),
        (PlannerMode.ON, "2-4", "ftp://x", None, "scaler"),
        (PlannerMode.ON, "2-4", "http://host:abc", None, "scaler"),
        (PlannerMode.ON, None, "none", ["22:00-06:00 workers=2-3"], "planner_window"),
        (PlannerMode.ON, "2-4", "local", ["22:00-06:00 workers=2-"], "planner_window"),
    ],
)
def test_a_scaler_without_limits_or_a_planner_is_refused_by_the_option_s_name(
    mode: PlannerMode, workers: str | None, address: str, windows: list[str] | None, field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        scaled(mode, workers, address, windows)
    assert caught.value.field == field
