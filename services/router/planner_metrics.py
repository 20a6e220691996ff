"""The planner's decisions as metrics: a projection of what it publishes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from baton.router.elastic import Decision, PlannerMode
from baton.router.planner.actions import Flip


class PlannerMetrics:
    """Absent from the exposition until the first decision."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "baton_planner_decisions",
            "Decisions by what held it back; acts where nothing did",
            ["held_by"],
            registry=registry,
        )
        self._flips = Counter(
            "baton_planner_flips",
            "Role changes that this router's planner ordered",
            ["role"],
            registry=registry,
        )
        self._scales = Counter(
            "baton_planner_scales",
            "Orders to start or to stop workers that this router's planner gave",
            ["action"],
            registry=registry,
        )
        self._needed = Gauge(
            "baton_planner_needed_workers",
            "Workers in both pools that would bear the load with ease; 0 where the planner does not count",
            registry=registry,
        )
        self._leads = Gauge("baton_planner_leads", "1 where this router's planner acts", registry=registry)
        self._pressure = Gauge(
            "baton_planner_pressure",
            "Load of a pool; 1 is as much as its objectives allow",
            ["role"],
            registry=registry,
        )
        self._workers = Gauge(
            "baton_planner_workers", "Workers in a pool or on their way to it", ["role"], registry=registry
        )

    def on_decision(self, decision: Decision) -> None:
        plan = decision.plan
        self._decisions.labels(plan.held_by or "none").inc()
        if decision.mode is not PlannerMode.OFF:  # which tells of rescues alone, not of every look
            self._leads.set(decision.is_acted_on)
            self._needed.set(plan.needed_workers)
            for role, load in plan.pools.items():
                self._pressure.labels(role.value).set(load.pressure)
                self._workers.labels(role.value).set(load.workers)
        if decision.is_acted_on:
            for action in plan.actions:
                if isinstance(action, Flip):
                    self._flips.labels(action.role.value).inc()
                else:
                    self._scales.labels(str(action.view()["action"])).inc()
