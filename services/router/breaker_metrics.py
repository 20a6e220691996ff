"""Circuit breakers under /metrics, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baton.router.breaker import Standing


class BreakerCollector(Collector):
    def __init__(self, breakers: Callable[[], Mapping[str, Standing]]) -> None:
        self._breakers = breakers

    def collect(self) -> Iterator[Metric]:
        """One gauge for each worker and state, 1 for the state that it is in."""
        standings = GaugeMetricFamily(
            "baton_worker_breaker",
            "Circuit breaker of a worker, as of this router: 1 for the state that it is in",
            labels=["worker", "state"],
        )
        for worker_id, standing in self._breakers().items():
            for state in Standing:
                standings.add_metric([worker_id, state.value], state is standing)
        yield standings
