"""Who holds which block of a worker's KV pool, and which blocks can be reused as a prefix.

A block is in exactly one place, and its way is

    free --allocate--> held --release, unpublished--> free
                        |
                        +----release, published-----> cached --acquire--> held
                                                        |
                                                        +--evicted by allocate (least recently released first,
                                                           and before these what served finished sessions alone)

Held blocks are counted as used, or as reserved while they are promised to a hand-off that has not landed.
Publishing tells that a full block's K and V are valid and names them by their chained hash
(`baton.block_hash`); from then on any sequence with the same prefix may hold the block too. Ids only, no
memory: the pool's tensors live in `baton.engine.kv_pool`. Not thread-safe: one scheduler owns it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from baton.engine.session_blocks import SessionBlocks
from baton.errors import Overloaded
from baton.fleet import KVBlocks


class OutOfBlocks(Overloaded):
    """The pool cannot give `asked` blocks: only `free` are free or evictable. Nothing was taken."""

    def __init__(self, asked: int, free: int) -> None:
        super().__init__(f"the KV pool has {free} blocks available, {asked} were asked for")
        self.asked = asked
        self.free = free


class CacheListener(Protocol):
    """Hears what the prefix cache gains and loses, right after it happened."""

    def on_stored(self, block_hash: bytes, parent_hash: bytes | None, token_ids: Sequence[int]) -> None: ...

    def on_removed(self, block_hash: bytes) -> None: ...

    def on_cleared(self) -> None: ...


class BlockManager:
    """Reference counts, free list and prefix cache over block ids 0 to `num_blocks` - 1.

    num_blocks, block_size: blocks in the pool, tokens in a block; both at least 1. Every operation costs
    O(1) a block. Breaking the rules of ownership (releasing a block that nobody holds, say) is a bug of the
    caller and trips an assertion that names the block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks >= 1, f"num_blocks is {num_blocks}, needs at least 1"
        assert block_size >= 1, f"block_size is {block_size}, needs at least 1"
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._listener: CacheListener | None = None
        self._references = [0] * num_blocks
        self._hash_by_block: list[bytes | None] = [None] * num_blocks
        self._block_by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the last one freed is still warm
        self._evictable: OrderedDict[int, None] = OrderedDict()  # first in, first evicted
        self._given_up: OrderedDict[int, None] = OrderedDict()  # evictable as well, and before all others
        self._sessions = SessionBlocks(num_blocks)
        self._reserved: set[int] = set()

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: free and evictable ones."""
        return len(self._free) + self._cached

    @property
    def _cached(self) -> int:
        return len(self._evictable) + len(self._given_up)

    def listen(self, listener: CacheListener) -> None:
        """From now on `listener` hears of every change; there is one at most."""
        assert self._listener is None, "somebody listens already"
        self._listener = listener

    def cached_hashes(self) -> list[bytes]:
        """Of all published blocks, held or not."""
        return list(self._block_by_hash)

    def usage(self) -> KVBlocks:
        free, cached, reserved = len(self._free), self._cached, len(self._reserved)
        used = self.num_blocks - free - cached - reserved
        return KVBlocks(total=self.num_blocks, free=free, cached=cached, used=used, reserved=reserved)

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many leading hashes are cached now, held or not; takes nothing."""
        for count, block_hash in enumerate(hashes):
            if block_hash not in self._block_by_hash:
                return count
        return len(hashes)

    def acquire(self, hashes: Sequence[bytes], session_key: bytes = b"") -> list[int]:
        """The blocks of the longest cached prefix of `hashes`, with one more reference on each, for a prompt of
        this session, or of none."""
        block_ids = []
        for block_hash in hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                break
            if self._references[block_id] == 0:
                del self._queue_of(block_id)[block_id]
            self._sessions.use(block_id, session_key)
            self._references[block_id] += 1
            block_ids.append(block_id)
        return block_ids

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of unspecified content with one reference each: free ones first, then evicted ones.

        Raises OutOfBlocks, having taken and evicted nothing, where fewer are available.
        """
        assert count >= 0, f"asked for {count} blocks"
        if count > self.available:
            raise OutOfBlocks(asked=count, free=self.available)
        free = self._free
        block_ids = [free.pop() if free else self._evict() for _ in range(count)]
        for block_id in block_ids:
            self._references[block_id] = 1
        return block_ids

    def share(self, block_ids: Sequence[int]) -> None:
        """One more reference on each of `block_ids`, all of them held by somebody already."""
        for block_id in block_ids:
            assert self._references[block_id] > 0, f"block {block_id} is shared, but nobody holds it"
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One reference less on each of `block_ids`, given in the order of their sequence.

        Goes through them in reverse, so that a sequence's last blocks are evicted before its first ones,
        which more prompts can share. A block that loses its last reference is no longer reserved either.
        """
        references = self._references
        for block_id in reversed(block_ids):
            assert references[block_id] > 0, f"block {block_id} is released, but nobody holds it"
            references[block_id] -= 1
            if references[block_id] == 0:
                self._reserved.discard(block_id)
                if self._hash_by_block[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._queue_of(block_id)[block_id] = None

    def publish(
        self,
        block_id: int,
        block_hash: bytes,
        parent_hash: bytes | None = None,
        token_ids: Sequence[int] = (),
        session_key: bytes = b"",
    ) -> None:
        """The contents of the full, held block are valid from now on and may be reused under `block_hash`; they
        were computed for this session, or for none. For the listener: the hash of the block before, None for a
        first one, and this block's tokens.

        Where another block is published under this hash already, that one stays and this one is not reused.
        """
        assert self._references[block_id] > 0, f"block {block_id} is published, but nobody holds it"
        known = self._hash_by_block[block_id]
        assert known in (None, block_hash), f"block {block_id} is published under another hash already"
        if block_hash in self._block_by_hash:
            self._sessions.use(self._block_by_hash[block_hash], session_key)
            return
        self._hash_by_block[block_id] = block_hash
        self._block_by_hash[block_hash] = block_id
        self._sessions.add(block_id, session_key)
        if self._listener is not None:
            self._listener.on_stored(block_hash, parent_hash, token_ids)

    def finish_session(self, session_key: bytes) -> int:
        """The session is over: once nobody holds them, the blocks that it alone has used are evicted before all
        others, its last ones first. Returns how many these are. A prompt that uses one before that has it as if it
        were new."""
        block_ids = self._sessions.finish(session_key)
        for block_id in reversed(block_ids):
            if self._references[block_id] == 0:
                del self._evictable[block_id]
                self._given_up[block_id] = None
        return len(block_ids)

    def mark_reserved(self, block_ids: Sequence[int]) -> None:
        """Counts held blocks as reserved instead of used, until unmarked or released for good."""
        for block_id in block_ids:
            assert self._references[block_id] > 0, f"block {block_id} is reserved, but nobody holds it"
            assert block_id not in self._reserved, f"block {block_id} is reserved twice"
            self._reserved.add(block_id)

    def unmark_reserved(self, block_ids: Sequence[int]) -> None:
        """Counts reserved blocks as used: what they were promised to has arrived."""
        for block_id in block_ids:
            assert block_id in self._reserved, f"block {block_id} is not reserved"
            self._reserved.remove(block_id)

    def clear_cache(self) -> None:
        """Forgets every published hash. Held blocks stay with their holders but are reused by nobody else."""
        for block_id in self._block_by_hash.values():
            self._hash_by_block[block_id] = None
        self._block_by_hash.clear()
        for queue in (self._evictable, self._given_up):
            self._free.extend(queue)
            queue.clear()
        self._sessions.clear()
        if self._listener is not None:
            self._listener.on_cleared()

    def _queue_of(self, block_id: int) -> OrderedDict[int, None]:
        """Where a cached block waits to be evicted or used again."""
        return self._given_up if self._sessions.is_over(block_id) else self._evictable

    def _evict(self) -> int:
        block_id, _ = (self._given_up or self._evictable).popitem(last=False)
        block_hash = self._hash_by_block[block_id]
        assert block_hash is not None, f"block {block_id} is evictable, but was never published"
        self._hash_by_block[block_id] = None
        del self._block_by_hash[block_hash]
        self._sessions.forget(block_id)
        if self._listener is not None:
            self._listener.on_removed(block_hash)
        return block_id
