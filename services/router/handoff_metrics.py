"""When a hand-off did what: the attributes of its event, and the histograms under /metrics that come from them.

The clocks of two hosts differ, so every figure is a difference on one worker's own clock, and figures of different
workers are never subtracted:

    decode worker    asked for memory ---reserve---> promised
    prefill worker   arrived ---queued---> scheduled ---compute---> computed
                                           scheduled ---first_byte---> the first block leaves
                                           scheduled ---last_byte---> the last block has left
                                           scheduled ---acknowledged---> all of them have arrived
                                                                  computed ---exposed---> acknowledged
    router           heard of the first tokens ---start---> the decode worker knows them
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from baton.events import Attributes, Event
from baton.lifecycle import Transition
from baton.wire import decode_pb2, prefill_pb2

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_STAGES = {
    "queued": "Prompt's arrival at its prefill worker to its turn, on that worker's clock",
    "reserve": "Request for decode memory to its promise, on the decode worker's clock",
    "first_byte": "Prompt's turn to the first byte sent, on the prefill worker's clock",
    "last_byte": "Prompt's turn to the last byte sent, on the prefill worker's clock",
    "acknowledged": "Prompt's turn to the acknowledgement of all blocks, on the prefill worker's clock",
    "exposed": "Prompt computed to the acknowledgement of all blocks, on the prefill worker's clock: what the "
    "hand-off adds to the time to the second token, for decode starts when all blocks are in",
    "start": "First tokens heard of to the decode worker's confirmation that it knows them, on the router's clock: "
    "decode starts no sooner",
}


def timeline(
    grant: decode_pb2.ReserveReply, start_s: float, report: prefill_pb2.PrefillHandedOff | None
) -> Attributes:
    """What the event of a hand-off tells: seconds as above, bytes, blocks, and the scheme that carried them.

    A stage that was not needed, for all was cached, is left out, and the scheme is `none`. report: None where the
    prefill worker was gone before it could tell; then its figures are left out, and the scheme is `unknown`.
    """
    told: Attributes = {"blocks": grant.missing_blocks, "scheme": "unknown"}
    told |= {"reserve_s": grant.waited_s, "start_s": start_s}
    if report is None:
        return told
    told |= {"blocks": report.blocks, "bytes": report.bytes, "scheme": report.scheme or "none"}
    told |= {"queued_s": report.queued_s, "compute_s": report.compute_s}
    if report.blocks:
        told |= {"first_byte_s": report.first_byte_s, "last_byte_s": report.last_byte_s}
    told |= {"acknowledged_s": report.acknowledged_s}
    told |= {"exposed_s": max(0.0, report.acknowledged_s - report.compute_s)}
    return told


class HandoffMetrics:
    """Counts and times hand-offs from their events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handoffs = Counter("baton_handoffs", "Hand-offs by KV transport", ["scheme"], registry=registry)
        self._blocks = Counter(
            "baton_handoff_blocks", "KV blocks handed from prefill to decode", registry=registry
        )
        self._bytes = Counter(
            "baton_handoff_bytes", "KV bytes handed from prefill to decode", registry=registry
        )
        self._stages = {
            f"{stage}_s": Histogram(
                f"baton_handoff_{stage}_seconds", text, buckets=_BUCKETS_S, registry=registry
            )
            for stage, text in _STAGES.items()
        }

    def on_event(self, event: Event) -> None:
        if event.transition is not Transition.HAND_OFF:
            return
        told = event.attributes
        self._handoffs.labels(told["scheme"]).inc()
        self._blocks.inc(float(told["blocks"]))
        self._bytes.inc(float(told.get("bytes", 0)))
        for name, histogram in self._stages.items():
            if name in told:
                histogram.observe(float(told[name]))
