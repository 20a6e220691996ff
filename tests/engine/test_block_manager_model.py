"""The pool against a plain model of it, over arbitrary histories."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baton.engine.block_manager import BlockManager, OutOfBlocks

HASHES = [bytes([i]) * 16 for i in range(12)]
SESSIONS = st.sampled_from([b"", b"ann", b"bob"])
OVER = b"over"
PREFIXES = st.lists(st.sampled_from(HASHES), unique=True, max_size=6)


class PoolMachine(RuleBasedStateMachine):
    """Holders come and go; the model knows who holds what, the order in which the cache forgets, and which session
    alone has used a block: it goes first once that is over."""

    @initialize(blocks=st.integers(1, 10))
    def start(self, blocks: int) -> None:
        self.blocks = blocks
        self.manager = BlockManager(blocks, 16)
        self.holders: list[list[int]] = []
        self.reserved: set[int] = set()
        self.published: dict[bytes, int] = {}
        self.evictable: list[int] = []
        self.given_up: list[int] = []
        self.owner: dict[int, bytes] = {}  # in the order in which they came to have it

    def use(self, block_id: int, session_key: bytes) -> None:
        if self.owner[block_id] == OVER:
            del self.owner[block_id]
            self.owner[block_id] = session_key
        elif self.owner[block_id] != session_key:
            self.owner[block_id] = b""

    @property
    def evictions(self) -> list[int]:
        return self.given_up + self.evictable

    def references(self) -> Counter[int]:
        return Counter(block_id for holder in self.holders for block_id in holder)

    def free(self) -> set[int]:
        return set(range(self.blocks)) - set(self.references()) - set(self.evictions)

    @rule(count=st.integers(0, 11))
    def allocate(self, count: int) -> None:
        free, held = self.free(), set(self.references())
        if count > len(free) + len(self.evictions):
            with pytest.raises(OutOfBlocks):
                self.manager.allocate(count)
            return
        block_ids = self.manager.allocate(count)
        evicted = self.evictions[: max(0, count - len(free))]
        assert len(set(block_ids)) == count
        assert not set(block_ids) & held
        assert set(block_ids) - free == set(evicted)
        self.forget_order_of(evicted)
        self.published = {key: block for key, block in self.published.items() if block not in evicted}
        self.owner = {block: owner for block, owner in self.owner.items() if block not in evicted}
        self.holders.append(block_ids)

    def forget_order_of(self, block_ids: list[int]) -> None:
        self.evictable = [block for block in self.evictable if block not in block_ids]
        self.given_up = [block for block in self.given_up if block not in block_ids]

    @rule(hashes=PREFIXES, session_key=SESSIONS)
    def acquire(self, hashes: list[bytes], session_key: bytes) -> None:
        expected = []
        for block_hash in hashes:
            if block_hash not in self.published:
                break
            expected.append(self.published[block_hash])
        assert self.manager.match(hashes) == len(expected)
        assert self.manager.acquire(hashes, session_key) == expected
        self.forget_order_of(expected)
        for block_id in expected:
            self.use(block_id, session_key)
        self.holders.append(expected)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block_ids = data.draw(st.sampled_from(self.holders))
        self.manager.share(block_ids)
        self.holders.append(list(block_ids))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.release_holder(data.draw(st.integers(0, len(self.holders) - 1)))

    def release_holder(self, index: int) -> None:
        block_ids = self.holders.pop(index)
        self.manager.release(block_ids)
        held, published = self.references(), set(self.published.values())
        gone = [block for block in reversed(block_ids) if block not in held]
        cached = [block for block in gone if block in published]
        self.given_up += [block for block in cached if self.owner[block] == OVER]
        self.evictable += [block for block in cached if self.owner[block] != OVER]
        self.reserved -= set(gone)

    @precondition(lambda self: self.references())
    @rule(data=st.data(), block_hash=st.sampled_from(HASHES), session_key=SESSIONS)
    def publish(self, data: st.DataObject, block_hash: bytes, session_key: bytes) -> None:
        unpublished = sorted(set(self.references()) - set(self.published.values()))
        if not unpublished:
            return
        block_id = data.draw(st.sampled_from(unpublished))
        self.manager.publish(block_id, block_hash, session_key=session_key)
        if block_hash in self.published:
            self.use(self.published[block_hash], session_key)
        else:
            self.published[block_hash] = block_id
            self.owner[block_id] = session_key

    @rule(session_key=SESSIONS)
    def finish_session(self, session_key: bytes) -> None:
        own = [block for block, owner in self.owner.items() if session_key and owner == session_key]
        assert self.manager.finish_session(session_key) == len(own)
        self.owner.update(dict.fromkeys(own, OVER))
        given_up = [block for block in reversed(own) if block in self.evictable]
        self.forget_order_of(given_up)
        self.given_up += given_up

    @precondition(lambda self: self.references())
    @rule(data=st.data())
    def reserve_or_arrive(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.references())))
        if block_id in self.reserved:
            self.manager.unmark_reserved([block_id])
        else:
            self.manager.mark_reserved([block_id])
        self.reserved ^= {block_id}

    @rule()
    def clear_cache(self) -> None:
        self.manager.clear_cache()
        self.published.clear()
        self.owner.clear()
        self.evictable.clear()
        self.given_up.clear()

    @invariant()
    def every_block_is_in_exactly_one_place(self) -> None:
        usage = self.manager.usage()
        assert usage.free + usage.cached + usage.used + usage.reserved == usage.total == self.blocks
        assert usage.cached == len(self.evictions)
        assert usage.reserved == len(self.reserved)
        assert usage.free == len(self.free())
        assert self.manager.available == usage.free + usage.cached

    @invariant()
    def exactly_the_published_blocks_match(self) -> None:
        assert [h for h in HASHES if self.manager.match([h])] == [h for h in HASHES if h in self.published]

    def teardown(self) -> None:
        """After the last release the pool is at its baseline, and gives out every block once."""
        while self.holders:
            self.release_holder(0)
        usage = self.manager.usage()
        assert usage.free + usage.cached == usage.total
        assert sorted(self.manager.allocate(self.blocks)) == list(range(self.blocks))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
