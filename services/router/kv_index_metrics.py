"""What the router knows of its workers' prefix caches, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baton.router.kv_events.replica import EventCounts
from baton.router.prefix_index import IndexStats


class KvIndexCollector(Collector):
    def __init__(self, stats: Callable[[], tuple[IndexStats, EventCounts]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        index, counts = self._stats()
        gauges = (
            ("entries", "Pairs of a block and a worker that caches it", index.pairs),
            ("blocks", "Blocks that some worker caches", index.blocks),
            ("bytes", "Memory of the index", index.used_bytes),
        )
        counters = (
            ("evicted_blocks", "Blocks forgotten for want of room", index.evicted_blocks),
            ("batches", "Batches of KV events applied", counts.batches),
            ("changed_blocks", "Blocks stored or removed by KV events", counts.blocks),
            ("gaps", "Batches that came before one that was missing", counts.gaps),
            ("dropped", "Batches that came again", counts.dropped),
            ("resyncs", "Snapshots taken of a worker's cache", counts.resyncs),
            ("rejections", "Times that a worker's events were not believed", counts.rejections),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"baton_kv_index_{name}", text, value=value)
        for name, text, value in counters:
            yield CounterMetricFamily(f"baton_kv_index_{name}", text, value=value)
