"""What a simulated worker's cache tells routers, as KV events do live; it arrives at once."""

from __future__ import annotations

from collections.abc import Sequence

from baton.router.prefix_index import PrefixIndex


class PoolEvents:
    """Implements `baton.engine.block_manager.CacheListener`. followers: indices of the routers that listen."""

    def __init__(self, worker_id: str) -> None:
        self.followers: list[PrefixIndex] = []
        self._worker_id = worker_id

    def on_stored(self, block_hash: bytes, parent_hash: bytes | None, token_ids: Sequence[int]) -> None:
        for index in self.followers:
            index.store(self._worker_id, block_hash)

    def on_removed(self, block_hash: bytes) -> None:
        for index in self.followers:
            index.remove(self._worker_id, block_hash)

    def on_cleared(self) -> None:
        for index in self.followers:
            index.clear(self._worker_id)
