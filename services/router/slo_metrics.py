"""How many requests met the objectives that they came with, from the events that end them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from baton.events import Attributes, Event
from baton.lifecycle import State
from baton.request import Objectives


def slo_attributes(objectives: Objectives) -> Attributes:
    """What a request's last event tells of its objectives, in seconds."""
    asked = {"slo_ttft_s": objectives.ttft_s, "slo_tpot_s": objectives.tpot_s}
    return {name: value for name, value in asked.items() if value is not None}


class SloMetrics:
    """A request that was refused or failed has missed its objectives. One that the client gave up counts nowhere,
    and one without a second token has no TPOT."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "baton_slo_requests",
            "Requests that had an objective (ttft, tpot), by whether it was met",
            ["objective", "outcome"],
            registry=registry,
        )

    def on_event(self, event: Event) -> None:
        if not event.state.is_terminal or event.state is State.CANCELLED:
            return
        figures = event.attributes
        for name in ("ttft", "tpot"):
            objective_s, figure_s = figures.get(f"slo_{name}_s"), figures.get(f"{name}_s")
            if objective_s is None:
                continue
            if event.state is not State.FINISHED:
                self._requests.labels(name, "missed").inc()
            elif figure_s is not None:
                is_met = float(figure_s) <= float(objective_s)
                self._requests.labels(name, "attained" if is_met else "missed").inc()
