"""Which published blocks of a pool have served one session alone, so that the session's end can give them up.

A block's way is

    publish by a session --> its own --used by anybody else--> shared, until it is evicted
                                |
                                +--the session is finished--> over --used once more--> the user's own
"""

from __future__ import annotations


class SessionBlocks:
    """Session keys by block id; an empty key stands for prompts without a session, which own nothing. Bounded by
    the pool, for a block has one owner at most. Not thread-safe: `baton.engine.block_manager` owns it."""

    def __init__(self, num_blocks: int) -> None:
        self._owners = [b""] * num_blocks
        self._own: dict[bytes, dict[int, None]] = {}
        self._over: set[int] = set()

    def add(self, block_id: int, session_key: bytes) -> None:
        """The block is published by a prompt of this session."""
        assert not self._owners[block_id], f"block {block_id} has an owner, but is only published now"
        if session_key:
            self._owners[block_id] = session_key
            self._own.setdefault(session_key, {})[block_id] = None

    def use(self, block_id: int, session_key: bytes) -> None:
        """A prompt of this session has found the block cached, or computed it once more."""
        if block_id in self._over:
            self._over.remove(block_id)
            self.add(block_id, session_key)
        elif self._owners[block_id] != session_key:
            self._disown(block_id)

    def forget(self, block_id: int) -> None:
        """The block is published no longer."""
        self._over.discard(block_id)
        self._disown(block_id)

    def clear(self) -> None:
        for block_id in [block_id for own in self._own.values() for block_id in own]:
            self._owners[block_id] = b""
        self._own.clear()
        self._over.clear()

    def finish(self, session_key: bytes) -> list[int]:
        """The session's own blocks, as they were published; nobody's from now on."""
        block_ids = list(self._own.pop(session_key, ()))
        for block_id in block_ids:
            self._owners[block_id] = b""
        self._over.update(block_ids)
        return block_ids

    def is_over(self, block_id: int) -> bool:
        """Whether nobody but sessions that are finished has used the block."""
        return block_id in self._over

    def _disown(self, block_id: int) -> None:
        owner = self._owners[block_id]
        if owner:
            self._owners[block_id] = b""
            own = self._own[owner]
            del own[block_id]
            if not own:
                del self._own[owner]
