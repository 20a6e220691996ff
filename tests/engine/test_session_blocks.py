"""What the end of a session gives up: the blocks that it alone has used, before all others, and none of others."""

from __future__ import annotations

from collections.abc import Sequence

from baton.engine.block_manager import BlockManager

HASHES = [bytes([i]) * 16 for i in range(16)]
ANN, BOB, NOBODY = b"ann", b"bob", b""


def publish(manager: BlockManager, hashes: Sequence[bytes], session_key: bytes) -> list[int]:
    """Held blocks with these contents, computed for this session."""
    block_ids = manager.allocate(len(hashes))
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        manager.publish(block_id, block_hash, session_key=session_key)
    return block_ids


def cache(manager: BlockManager, hashes: Sequence[bytes], session_key: bytes) -> None:
    manager.release(publish(manager, hashes, session_key))


def reuse(manager: BlockManager, hashes: Sequence[bytes], session_key: bytes) -> None:
    manager.release(manager.acquire(hashes, session_key))


def evicted_by(manager: BlockManager, count: int) -> list[bytes]:
    """What is lost when `count` blocks are asked for."""
    before = manager.cached_hashes()
    manager.allocate(count)
    return [block_hash for block_hash in before if block_hash not in manager.cached_hashes()]


def test_a_finished_sessions_blocks_go_before_older_ones_its_last_ones_first() -> None:
    manager = BlockManager(6, 16)
    cache(manager, HASHES[:3], ANN)
    cache(manager, HASHES[3:6], BOB)
    assert manager.finish_session(BOB) == 3
    assert evicted_by(manager, 1) == [HASHES[5]]
    assert evicted_by(manager, 1) == [HASHES[4]]
    assert evicted_by(manager, 1) == [HASHES[3]]
    assert manager.match(HASHES[:3]) == 3


def test_blocks_stay_cached_until_the_room_is_needed() -> None:
    manager = BlockManager(6, 16)
    cache(manager, HASHES[:3], ANN)
    usage = manager.usage()
    manager.finish_session(ANN)
    assert manager.usage() == usage
    assert manager.match(HASHES) == 3


def test_what_another_session_or_a_prompt_without_one_has_used_is_not_given_up() -> None:
    manager = BlockManager(6, 16)
    cache(manager, HASHES[:4], ANN)
    reuse(manager, HASHES[:1], BOB)
    reuse(manager, HASHES[:2], NOBODY)
    assert manager.finish_session(ANN) == 2
    assert manager.finish_session(BOB) == 0, "what was published for another is nobody's own"
    assert evicted_by(manager, 4) == HASHES[2:4]


def test_what_another_session_has_computed_once_more_is_not_given_up() -> None:
    manager = BlockManager(6, 16)
    first, again = publish(manager, HASHES[:2], ANN), publish(manager, HASHES[:1], BOB)
    for block_ids in (first, again):
        manager.release(block_ids)
    assert manager.finish_session(ANN) == 1


def test_what_was_cached_before_the_session_is_not_given_up() -> None:
    manager = BlockManager(6, 16)
    cache(manager, HASHES[:2], NOBODY)
    reuse(manager, HASHES[:2], ANN)
    assert manager.finish_session(ANN) == 0


def test_blocks_still_held_at_the_sessions_end_are_given_up_when_they_are_released() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:2], BOB)
    held = publish(manager, HASHES[2:4], ANN)
    assert manager.finish_session(ANN) == 2
    assert manager.usage().used == 2, "a prompt that still runs keeps what it holds"
    manager.release(held)
    assert evicted_by(manager, 2) == HASHES[2:4]


def test_a_prompt_that_reuses_given_up_blocks_has_them_as_if_they_were_new() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:2], ANN)
    cache(manager, HASHES[2:4], NOBODY)
    manager.finish_session(ANN)
    reuse(manager, HASHES[:2], BOB)
    assert evicted_by(manager, 2) == HASHES[2:4], "the others are older now"
    assert manager.finish_session(ANN) == 0
    assert manager.finish_session(BOB) == 2


def test_an_unknown_session_and_one_that_is_over_have_nothing_to_give_up() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:2], ANN)
    assert manager.finish_session(BOB) == 0
    assert manager.finish_session(ANN) == 2
    assert manager.finish_session(ANN) == 0
    assert manager.finish_session(NOBODY) == 0


def test_nothing_of_a_session_outlasts_its_blocks() -> None:
    manager = BlockManager(4, 16)
    cache(manager, HASHES[:4], ANN)
    manager.release(manager.allocate(4))
    assert manager.finish_session(ANN) == 0, "evicted"
    cache(manager, HASHES[:4], ANN)
    manager.finish_session(ANN)
    manager.clear_cache()
    assert manager.usage().free == 4
    cache(manager, HASHES[:4], BOB)
    assert manager.finish_session(ANN) == 0, "cleared"
    assert manager.finish_session(BOB) == 4
