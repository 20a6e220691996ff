"""What the prefix cache has gained and lost since somebody last asked: filled by the engine's thread, emptied by
the publisher's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from baton.engine.block_manager import BlockManager


@dataclass(frozen=True, slots=True)
class Stored:
    """parent_hash: of the block before; None for a first one."""

    block_hash: bytes
    parent_hash: bytes | None
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Removed:
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """All that is cached now, whatever was before."""

    hashes: Sequence[bytes]


Change: TypeAlias = Stored | Removed | Reset

MAX_CHANGES = 65_536


class KvEventLog:
    """Implements `baton.engine.block_manager.CacheListener`. Bounded: where more than `max_changes` wait, they are
    replaced by one `Reset`."""

    def __init__(
        self, blocks: BlockManager, on_first: Callable[[], None], max_changes: int = MAX_CHANGES
    ) -> None:
        """on_first: called by the engine's thread when there is something again."""
        self._blocks = blocks
        self._on_first = on_first
        self._max_changes = max_changes
        self._lock = threading.Lock()
        self._changes: list[Change] = [Reset(blocks.cached_hashes())]

    def on_stored(self, block_hash: bytes, parent_hash: bytes | None, token_ids: Sequence[int]) -> None:
        self._append(Stored(block_hash, parent_hash, token_ids))

    def on_removed(self, block_hash: bytes) -> None:
        self._append(Removed(block_hash))

    def on_cleared(self) -> None:
        self._append(Reset(()))

    def take(self) -> list[Change]:
        """All changes since the last call, in order; the first call begins with a `Reset`."""
        with self._lock:
            changes, self._changes = self._changes, []
        return changes

    def _append(self, change: Change) -> None:
        with self._lock:
            is_first = not self._changes
            if len(self._changes) >= self._max_changes:
                self._changes = [Reset(self._blocks.cached_hashes())]
            else:
                self._changes.append(change)
        if is_first:
            self._on_first()
