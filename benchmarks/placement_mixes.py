"""Disaggregation decided for each request, beside always and never, on traffic from prompt-heavy to output-heavy:
below what the fleet sustains, about there and above."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from placement_fleets import fleet, goodput_rps, simulate, with_mode
from rows import Row

from baton.router.snapshot import Disaggregation
from baton.sim.generators import generate, generate_single
from baton.sim.workload import Workload

FLEET = fleet(prefill_h100=4, decode_h200=4)
TARGET = 0.98
_ARRIVALS_S = 40
_SESSIONS_RPS = 40.0
_SESSION_REQUESTS = {"chat": 3000, "agent": 2500}


@dataclass(frozen=True, slots=True)
class Mix:
    """traffic: one of `baton.sim.generators`, or `prompt:output`, median lengths of requests that share nothing.
    load: requests a second, or of sessions how many times as fast they come."""

    traffic: str
    load: float

    @property
    def name(self) -> str:
        return f"{self.traffic} at {self.load:g}{' x' if self.traffic in _SESSION_REQUESTS else '/s'}"

    def workload(self, seed: int) -> Workload:
        if self.traffic in _SESSION_REQUESTS:
            requests = _SESSION_REQUESTS[self.traffic]
            return generate(self.traffic, requests, _SESSIONS_RPS, seed).at_rate(self.load)
        requests = round(_ARRIVALS_S * self.load)
        prompt_tokens, _, output_tokens = self.traffic.partition(":")
        if not output_tokens:
            return generate(self.traffic, requests, self.load, seed)
        return generate_single(int(prompt_tokens), int(output_tokens), requests, self.load, seed)


_LOADS = {
    "6000:60": (12.0, 16.0, 20.0),
    "3000:120": (24.0, 32.0, 40.0),
    "1500:250": (50.0, 65.0, 80.0),
    "750:500": (55.0, 65.0, 80.0),
    "250:900": (38.0, 45.0, 60.0),
    "shared-prefix": (85.0, 95.0, 105.0, 120.0),
    "chat": (10.0, 20.0),
    "agent": (2.0, 4.0),
}
MIXES = tuple(Mix(traffic, load) for traffic, loads in _LOADS.items() for load in loads)
QUICK_MIXES = (Mix("6000:60", 16.0), Mix("shared-prefix", 95.0), Mix("chat", 20.0))


def compared_modes(mixes: tuple[Mix, ...], seeds: range, step: Callable[[str], None]) -> Iterator[Row]:
    """A row for each mix: of the seeds the one where deciding comes off worst."""
    for mix in mixes:
        rows = [_compared(mix, seed, step) for seed in seeds]
        yield min(rows, key=lambda row: math.inf if row.ratio is None else row.ratio)


def _compared(mix: Mix, seed: int, step: Callable[[str], None]) -> Row:
    sent = mix.workload(seed)
    reached = {}
    for mode in Disaggregation:
        step(f"{mix.name}, {mode.value}")
        reached[mode] = goodput_rps(simulate(with_mode(FLEET, mode), sent), sent)
    auto = reached.pop(Disaggregation.AUTO)
    better = max(reached, key=lambda mode: reached[mode])
    return Row(
        name=f"auto, {mix.name}",
        value=auto,
        unit="req/s",
        peer=better.value,
        peer_value=reached[better],
        ratio=auto / reached[better] if reached[better] else None,
        target=TARGET,
    )
