"""What an agent has moved since its start."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class SchemeStats:
    """Cumulative counts of one scheme."""

    blocks_sent: int = 0
    bytes_sent: int = 0
    blocks_received: int = 0
    bytes_received: int = 0

    def __add__(self, other: SchemeStats) -> SchemeStats:
        return SchemeStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class TransferStats:
    """Counts are cumulative but for `open_sends` and `open_receives`. blocks_received: landed and verified.

    duplicate_blocks: arrived again after they had landed, and were left out. refused: frames that were not
    let in, by class name of the error. by_scheme: keys are URI schemes.
    """

    blocks_sent: int
    bytes_sent: int
    blocks_received: int
    bytes_received: int
    duplicate_blocks: int
    open_sends: int
    open_receives: int
    refused: Mapping[str, int]
    by_scheme: Mapping[str, SchemeStats]

    @classmethod
    def total(cls, each: Sequence[TransferStats]) -> TransferStats:
        """Of several agents."""
        refused: Counter[str] = Counter()
        by_scheme: dict[str, SchemeStats] = {}
        for stats in each:
            refused.update(stats.refused)
            for scheme, moved in stats.by_scheme.items():
                by_scheme[scheme] = by_scheme.get(scheme, SchemeStats()) + moved
        counts = {
            field.name: sum(getattr(stats, field.name) for stats in each)
            for field in fields(cls)
            if field.name not in ("refused", "by_scheme")
        }
        return cls(**counts, refused=dict(refused), by_scheme=by_scheme)


@dataclass(slots=True)
class Tally:
    """Blocks and bytes of one scheme in one direction; counted from any thread."""

    blocks: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, blocks: int, num_bytes: int) -> None:
        with self._lock:
            self.blocks += blocks
            self.bytes += num_bytes
