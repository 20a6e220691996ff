"""What an agent has moved since its start."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SchemeStats:
    """Cumulative counts of one scheme."""

    blocks_sent: int = 0
    bytes_sent: int = 0
    blocks_received: int = 0
    bytes_received: int = 0


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
