"""What has become of sessions that clients have finished here, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from baton.router.sessions import SessionCounts


class SessionCollector(Collector):
    def __init__(self, counts: Callable[[], SessionCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        counters = (
            ("finished", "Sessions that clients have finished", counts.finished),
            ("finished_blocks", "KV blocks that finished sessions have given up", counts.blocks),
            ("unconfirmed", "Workers that did not confirm a session's end in time", counts.unconfirmed),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"baton_sessions_{name}", text, value=value)
