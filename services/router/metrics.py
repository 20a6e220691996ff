"""Prometheus metrics: one projection of the event stream, one reading of the fleet at scrape time, and aliases
under the names that dashboards made for vLLM read. Nothing else counts requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from baton.events import Event
from baton.fleet import Member
from baton.lifecycle import Transition
from baton.router.elastic import Decision
from baton.router.handoff_metrics import HandoffMetrics
from baton.router.planner_metrics import PlannerMetrics
from baton.router.slo_metrics import SloMetrics

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TTFT_ERROR_BUCKETS_S = (-10, -2.5, -1, -0.25, -0.1, -0.025, 0, 0.025, 0.1, 0.25, 1, 2.5, 10)
_TPOT_ERROR_BUCKETS_S = (-0.2, -0.05, -0.02, -0.005, -0.001, 0, 0.001, 0.005, 0.02, 0.05, 0.2)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)

_ALIASES = {
    "baton_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "baton_time_per_output_token_seconds": "vllm:time_per_output_token_seconds",
    "baton_request_duration_seconds": "vllm:e2e_request_latency_seconds",
    "baton_prompt_tokens": "vllm:prompt_tokens",
    "baton_generation_tokens": "vllm:generation_tokens",
    "baton_cached_prompt_tokens": "vllm:prefix_cache_hits",
    "baton_requests_finished": "vllm:request_success",
    "baton_fleet_running": "vllm:num_requests_running",
    "baton_fleet_waiting": "vllm:num_requests_waiting",
    "baton_fleet_kv_used_ratio": "vllm:kv_cache_usage_perc",
}


class RequestMetrics:
    """Counts requests from their transitions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        self._placed = counter("baton_requests_placed", "Placements, retries included")
        self._finished = counter("baton_requests_finished", "Requests that ended with stop or length")
        self._ended_badly = counter(
            "baton_requests_unfinished", "Requests that ended otherwise", "state", "code"
        )
        self._retries = counter("baton_request_retries", "Legs tried once more elsewhere", "code")
        self._sites = counter(
            "baton_prompt_sites", "Placements by where the prompt is computed, and why there", "site"
        )
        self._resumed = counter(
            "baton_request_resumes", "Streams that went on elsewhere after a failure", "code"
        )
        self._hedges = counter(
            "baton_request_hedges",
            "Second attempts at a first token: sent, won, or one of the two failed",
            "event",
        )
        self._migrations = counter("baton_request_migrations", "Streams that moved with their KV")
        self._local = counter("baton_local_prefills", "Prompts computed on their decode worker")
        self._prompt_tokens = counter("baton_prompt_tokens", "Prompt tokens placed")
        self._cached_tokens = counter("baton_cached_prompt_tokens", "Prompt tokens found in a prefix cache")
        self._generation_tokens = counter("baton_generation_tokens", "Tokens generated")
        self._ttft_s = histogram(
            "baton_time_to_first_token_seconds", "Arrival to first token", _LATENCY_BUCKETS_S
        )
        self._tpot_s = histogram(
            "baton_time_per_output_token_seconds", "Mean per later token", _TPOT_BUCKETS_S
        )
        self._ttft_error_s = histogram(
            "baton_ttft_prediction_error_seconds",
            "Placement to first token, less predicted",
            _TTFT_ERROR_BUCKETS_S,
        )
        self._tpot_error_s = histogram(
            "baton_tpot_prediction_error_seconds",
            "Mean per later token, less predicted",
            _TPOT_ERROR_BUCKETS_S,
        )
        self._waited_s = histogram(
            "baton_queue_wait_seconds",
            "Arrival to the turn, of requests that had to wait in the router",
            _LATENCY_BUCKETS_S,
        )
        self._e2e_s = histogram("baton_request_duration_seconds", "Arrival to last token", _LATENCY_BUCKETS_S)

    def on_event(self, event: Event) -> None:
        values = event.attributes
        match event.transition:
            case Transition.ADMIT:
                self._waited_s.observe(float(values["waited_s"]))
            case Transition.PLACE:
                self._placed.inc()
                self._sites.labels(values["site"]).inc()
                self._prompt_tokens.inc(float(values["prompt_tokens"]))
            case Transition.FIRST_TOKENS:
                self._cached_tokens.inc(float(values["cached_tokens"]))
            case Transition.DECODE_LOCALLY:
                self._local.inc()
                self._cached_tokens.inc(float(values["cached_tokens"]))
            case Transition.HEDGE:
                self._hedges.labels("sent").inc()
            case Transition.FALL_OUT:
                self._hedges.labels("failed").inc()
            case Transition.TAKE_OVER:
                self._hedges.labels("won").inc()
            case Transition.RETRY:
                self._retries.labels(values["code"]).inc()
            case Transition.MIGRATE:
                self._migrations.inc()
            case Transition.RESUME:
                self._resumed.labels(values["code"]).inc()
        if event.state.is_terminal:
            self._on_end(event)

    def _on_end(self, event: Event) -> None:
        values = event.attributes
        self._generation_tokens.inc(float(values.get("output_tokens", 0)))
        if event.transition is not Transition.FINISH:
            self._ended_badly.labels(event.state.value, values.get("code", event.state.value)).inc()
            return
        self._finished.inc()
        self._e2e_s.observe(float(values["e2e_s"]))
        self._ttft_s.observe(float(values["ttft_s"]))
        for figure, metric in (
            ("tpot_s", self._tpot_s),
            ("ttft_error_s", self._ttft_error_s),
            ("tpot_error_s", self._tpot_error_s),
        ):
            if figure in values:
                metric.observe(float(values[figure]))


class FleetCollector(Collector):
    """Reads the fleet when scraped."""

    def __init__(self, members: Callable[[], Iterable[Member]]) -> None:
        self._members = members

    def collect(self) -> Iterator[Metric]:
        members = list(self._members())
        labels = ["worker", "role"]
        running = GaugeMetricFamily(
            "baton_worker_running", "Sequences or prompts in the batch", labels=labels
        )
        waiting = GaugeMetricFamily("baton_worker_waiting", "Requests accepted, not running", labels=labels)
        blocks = GaugeMetricFamily("baton_worker_kv_blocks", "KV blocks by use", labels=[*labels, "use"])
        for member in members:
            values = [member.worker.worker_id, member.worker.role.value]
            running.add_metric(values, member.load.running)
            waiting.add_metric(values, member.load.waiting)
            for use in ("free", "cached", "used", "reserved"):
                blocks.add_metric([*values, use], getattr(member.load.kv_blocks, use))
        yield from (running, waiting, blocks)
        yield _gauge("baton_fleet_running", "Sum over workers", sum(m.load.running for m in members))
        yield _gauge("baton_fleet_waiting", "Sum over workers", sum(m.load.waiting for m in members))
        total = sum(m.load.kv_blocks.total for m in members)
        held = sum(m.load.kv_blocks.used + m.load.kv_blocks.reserved for m in members)
        yield _gauge("baton_fleet_kv_used_ratio", "Share of KV blocks in use", held / total if total else 0.0)


class AliasCollector(Collector):
    """Yields what other collectors hold once more, under the names that vLLM's dashboards read."""

    def __init__(self, source: CollectorRegistry, model_name: Callable[[], str]) -> None:
        self._source = source
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        for metric in self._source.collect():
            alias = _ALIASES.get(metric.name)
            if alias is not None:
                yield self._renamed(metric, alias)

    def _renamed(self, metric: Metric, alias: str) -> Metric:
        renamed = Metric(alias, metric.documentation, metric.type)
        for sample in metric.samples:
            labels = {**sample.labels, "model_name": self._model_name()}
            name = alias + sample.name.removeprefix(metric.name)
            renamed.samples.append(Sample(name, labels, sample.value, sample.timestamp, sample.exemplar))
        return renamed


class RouterMetrics:
    """Everything under /metrics."""

    def __init__(
        self, members: Callable[[], Iterable[Member]], model_name: Callable[[], str], *others: Collector
    ) -> None:
        self._registry = CollectorRegistry()
        self._aliases = CollectorRegistry()
        projections = RequestMetrics, HandoffMetrics, SloMetrics
        self._projections = [projection(self._registry) for projection in projections]
        self._planner = PlannerMetrics(self._registry)
        for collector in (FleetCollector(members), *others):
            self._registry.register(collector)
        self._aliases.register(AliasCollector(self._registry, model_name))

    def on_event(self, event: Event) -> None:
        for projection in self._projections:
            projection.on_event(event)

    def on_decision(self, decision: Decision) -> None:
        self._planner.on_decision(decision)

    def text(self) -> bytes:
        """The Prometheus exposition format."""
        return generate_latest(self._registry) + generate_latest(self._aliases)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
