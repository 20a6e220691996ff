"""What the owner of a pool may rely on, one behaviour a test."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from baton.engine.block_manager import BlockManager, OutOfBlocks
from baton.fleet import KVBlocks

HASHES = [bytes([i]) * 16 for i in range(16)]


class Recorder:
    """Remembers what the cache said."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []

    def on_stored(self, block_hash: bytes, parent_hash: bytes | None, token_ids: Sequence[int]) -> None:
        self.heard.append((f"stored after {parent_hash!r}: {list(token_ids)}", block_hash))

    def on_removed(self, block_hash: bytes) -> None:
        self.heard.append(("removed", block_hash))

    def on_cleared(self) -> None:
        self.heard.append(("cleared", b""))


def cache(manager: BlockManager, hashes: list[bytes]) -> list[int]:
    """Blocks published under `hashes` that nobody holds any more."""
    block_ids = manager.allocate(len(hashes))
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        manager.publish(block_id, block_hash)
    manager.release(block_ids)
    return block_ids


def test_a_new_pool_is_free() -> None:
    assert BlockManager(8, 16).usage() == KVBlocks(total=8, free=8, cached=0, used=0, reserved=0)


def test_allocating_more_than_available_takes_and_evicts_nothing() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:2])
    held = manager.allocate(1)
    with pytest.raises(OutOfBlocks, match=r"3 blocks available, 4 were asked for") as caught:
        manager.allocate(4)
    assert (caught.value.asked, caught.value.free) == (4, 3)
    assert manager.usage() == KVBlocks(total=4, free=1, cached=2, used=1, reserved=0)
    assert manager.match(HASHES[:2]) == 2
    manager.release(held)


def test_a_shared_block_is_free_only_after_its_last_holder_released_it() -> None:
    manager = BlockManager(2, 16)
    block_ids = manager.allocate(2)
    manager.share(block_ids)
    manager.release(block_ids)
    assert manager.available == 0
    manager.release(block_ids)
    assert manager.available == 2


def test_a_cached_prefix_is_reused_up_to_the_first_missing_block() -> None:
    manager = BlockManager(8, 16)
    cached = cache(manager, HASHES[:3])
    asked = [*HASHES[:2], HASHES[9], HASHES[2]]
    assert manager.match(asked) == 2
    assert manager.acquire(asked) == cached[:2]
    assert manager.usage() == KVBlocks(total=8, free=5, cached=1, used=2, reserved=0)
    manager.release(cached[:2])


def test_a_held_block_is_reused_while_its_first_holder_still_runs() -> None:
    manager = BlockManager(2, 16)
    (block_id,) = manager.allocate(1)
    manager.publish(block_id, HASHES[0])
    assert manager.acquire(HASHES[:1]) == [block_id]
    manager.release([block_id])
    manager.allocate(1)
    with pytest.raises(OutOfBlocks):
        manager.allocate(1)


def test_free_blocks_are_taken_before_anything_is_evicted() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:2])
    manager.allocate(2)
    assert manager.match(HASHES[:2]) == 2


def test_a_sequences_last_blocks_are_evicted_before_its_first() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:4])
    manager.allocate(3)
    assert manager.match(HASHES[:4]) == 1


def test_the_least_recently_released_sequence_is_evicted_first() -> None:
    manager = BlockManager(4, 16)
    older, newer = HASHES[:2], HASHES[2:4]
    cache(manager, older)
    cache(manager, newer)
    manager.release(manager.acquire(older))
    manager.allocate(2)
    assert (manager.match(older), manager.match(newer)) == (2, 0)


def test_the_second_block_of_one_hash_is_not_reused() -> None:
    manager = BlockManager(2, 16)
    first, second = manager.allocate(2)
    manager.publish(first, HASHES[0])
    manager.publish(second, HASHES[0])
    manager.release([second])
    assert manager.usage() == KVBlocks(total=2, free=1, cached=0, used=1, reserved=0)
    assert manager.acquire(HASHES[:1]) == [first]


def test_reserved_blocks_are_counted_apart_until_unmarked() -> None:
    manager = BlockManager(4, 16)
    block_ids = manager.allocate(3)
    manager.mark_reserved(block_ids[:2])
    assert manager.usage() == KVBlocks(total=4, free=1, cached=0, used=1, reserved=2)
    manager.unmark_reserved(block_ids[:2])
    assert manager.usage() == KVBlocks(total=4, free=1, cached=0, used=3, reserved=0)


def test_releasing_a_reservation_ends_it() -> None:
    manager = BlockManager(4, 16)
    block_ids = manager.allocate(3)
    manager.mark_reserved(block_ids)
    manager.release(block_ids)
    assert manager.usage() == KVBlocks(total=4, free=4, cached=0, used=0, reserved=0)


def test_clearing_the_cache_leaves_held_blocks_to_their_holders_alone() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:2])
    (held,) = manager.acquire(HASHES[:1])
    manager.clear_cache()
    assert manager.match(HASHES[:2]) == 0
    assert manager.usage() == KVBlocks(total=4, free=3, cached=0, used=1, reserved=0)
    manager.release([held])
    assert manager.usage() == KVBlocks(total=4, free=4, cached=0, used=0, reserved=0)


def test_the_listener_hears_what_is_stored_removed_and_cleared() -> None:
    recorder = Recorder()
    manager = BlockManager(2, 2)
    manager.listen(recorder)
    held = manager.allocate(2)
    manager.publish(held[0], HASHES[0], None, [1, 2])
    manager.publish(held[1], HASHES[1], HASHES[0], [3, 4])
    assert manager.cached_hashes() == HASHES[:2]
    manager.release(held)
    manager.release(manager.allocate(1))
    assert manager.cached_hashes() == HASHES[:1]
    manager.clear_cache()
    assert recorder.heard == [
        ("stored after None: [1, 2]", HASHES[0]),
        (f"stored after {HASHES[0]!r}: [3, 4]", HASHES[1]),
        ("removed", HASHES[1]),
        ("cleared", b""),
    ]
    assert manager.cached_hashes() == []


@pytest.mark.parametrize("misuse", ["release", "share", "mark_reserved"])
def test_using_a_block_that_nobody_holds_trips_an_assertion_naming_it(misuse: str) -> None:
    manager = BlockManager(4, 16)
    block_ids = manager.allocate(1)
    manager.release(block_ids)
    with pytest.raises(AssertionError, match=f"block {block_ids[0]} "):
        getattr(manager, misuse)(block_ids)


def test_publishing_trips_an_assertion_without_a_holder_or_under_a_second_hash() -> None:
    manager = BlockManager(1, 16)
    with pytest.raises(AssertionError, match=r"block 0 is published, but nobody holds it"):
        manager.publish(0, HASHES[0])
    manager.allocate(1)
    manager.publish(0, HASHES[0])
    with pytest.raises(AssertionError, match=r"block 0 is published under another hash"):
        manager.publish(0, HASHES[1])
