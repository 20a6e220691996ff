"""What the planner keeps to: objectives, bounds of the pools, and how eager it may be."""

from __future__ import annotations

from dataclasses import dataclass

from baton.fleet import Role

DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Workers of a pool: never fewer than `least`, never more than `most` (None: no limit)."""

    least: int = 1
    most: int | None = None

    def __str__(self) -> str:
        return f"{self.least} to {'any' if self.most is None else self.most}"


@dataclass(frozen=True, slots=True)
class Window:
    """Other bounds at some time of every day, in UTC: from starts_s up to ends_s, seconds of the day, over midnight
    where it ends before it starts. None leaves a pool's bounds as they are."""

    starts_s: float
    ends_s: float
    prefill: Bounds | None = None
    decode: Bounds | None = None
    workers: Bounds | None = None

    def covers(self, day_s: float) -> bool:
        if self.starts_s <= self.ends_s:
            return self.starts_s <= day_s < self.ends_s
        return day_s >= self.starts_s or day_s < self.ends_s


@dataclass(frozen=True, slots=True)
class PlannerRules:
    """ttft_s, tpot_s: what the fleet is to keep. window_s: of observations that an estimate is made from.

    comfort: pressure up to which a pool is left alone; 1 is as much as the objectives allow. margin: by how much,
    relatively, the higher of the two pressures has to fall for a flip. cooldown_s: after a flip, for which no flip
    goes the other way and its worker stays. flips_per_hour: at most, in any hour; None: see `flip_budget`.
    draining: the share of a pool that may be on its way out at once.

    workers: in both pools together, where the planner says how many there are; None where it does not.
    scale_in_after_s: fewer workers would have done for so long before one is stopped. scales_per_hour: orders to
    start or to stop workers, at most, in any hour.

    rescue_after_s: without any decode worker, for dead ones to come back by themselves; starting_s: the same of a
    fleet in which there was none yet, for they may be loading their weights.
    """

    ttft_s: float = 2.0
    tpot_s: float = 0.1
    prefill: Bounds = Bounds()
    decode: Bounds = Bounds()
    windows: tuple[Window, ...] = ()
    window_s: float = 30.0
    comfort: float = 0.9
    margin: float = 0.1
    cooldown_s: float = 120.0
    flips_per_hour: int | None = None
    draining: float = 0.25
    rescue_after_s: float = 5.0
    starting_s: float = 60.0
    workers: Bounds | None = None
    scale_in_after_s: float = 300.0
    scales_per_hour: int = 12

    def flip_budget(self, workers: int) -> int:
        """Role changes in any hour at most. A fleet that follows its traffic there and back changes most of its
        workers twice; one that stops halfway for want of budget serves neither traffic."""
        return max(30, 2 * workers) if self.flips_per_hour is None else self.flips_per_hour

    def bounds(self, day_s: float) -> dict[Role, Bounds]:
        """At one time of the day; of windows that overlap the first holds."""
        window = self._window(day_s)
        return {
            Role.PREFILL: window.prefill or self.prefill,
            Role.DECODE: window.decode or self.decode,
        }

    def worker_bounds(self, day_s: float) -> Bounds | None:
        """Of both pools together, as `bounds`; None where the planner does not count them."""
        return self.workers and (self._window(day_s).workers or self.workers)

    def _window(self, day_s: float) -> Window:
        return next((window for window in self.windows if window.covers(day_s)), Window(0.0, 0.0))
