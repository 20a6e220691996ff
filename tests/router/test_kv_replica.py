"""A worker's events, however they arrive: the index has what the worker has, or the worker is not believed."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.block_manager import BlockManager
from baton.kv_events import AllBlocksCleared, BlockStored, EventBatch, KvEvent, encode_batch
from baton.router.kv_events.replica import EventCounts, ImplausibleEvents, Replica, Verdict
from baton.router.prefix_index import PrefixIndex
from baton.worker.kv_batches import KvBatches
from baton.worker.kv_event_log import KvEventLog

BLOCK_SIZE = 16
POOL_BLOCKS = 6
HASHES = [sha256(bytes([i])).digest()[:16] for i in range(12)]
NO_TOKENS = msgspec.Raw(msgspec.msgpack.encode([]))


class Worker:
    """A pool, its event log and its batches, as a worker process has them, in one epoch."""

    def __init__(self, kept_batches: int, max_changes: int) -> None:
        self.blocks = BlockManager(POOL_BLOCKS, BLOCK_SIZE)
        self.batches = KvBatches(BLOCK_SIZE, kept_batches, max_kept_bytes=1 << 20)
        self._log = KvEventLog(self.blocks, lambda: None, max_changes)
        self.blocks.listen(self._log)

    def cache(self, first: int, count: int) -> None:
        """A prompt of blocks `first` on passes, evicting others where it must."""
        hashes = HASHES[first : first + count]
        held = self.blocks.acquire(hashes)
        held += self.blocks.allocate(len(hashes) - len(held))
        for position, block_id in enumerate(held):
            parent = hashes[position - 1] if position else None
            self.blocks.publish(block_id, hashes[position], parent, range(BLOCK_SIZE))
        self.blocks.release(held)

    def published(self) -> list[tuple[int, bytes]]:
        return list(self.batches.add(self._log.take()))


def replica(index: PrefixIndex, counts: EventCounts | None = None) -> Replica:
    return Replica("w", BLOCK_SIZE, index, lambda: POOL_BLOCKS, counts or EventCounts())


def load_snapshot(replica: Replica, worker: Worker) -> None:
    for _ in replica.load(worker.batches.sequence, list(worker.batches.snapshot())):
        pass


def catch_up(replica: Replica, worker: Worker) -> None:
    """As `Subscriber` does: what was missed, or all where too little is kept."""
    for sequence, batch in worker.batches.since(replica.expected):
        if replica.take(sequence, batch) is Verdict.GAP:
            break
    if replica.expected <= worker.batches.sequence:
        load_snapshot(replica, worker)


def credited(index: PrefixIndex) -> set[bytes]:
    return {block_hash for block_hash in HASHES if index.match("w", block_hash)}


steps = st.lists(
    st.tuples(st.just("cache"), st.integers(0, 11), st.integers(1, 5))
    | st.tuples(st.sampled_from(["clear", "publish", "restart"])),
    max_size=30,
)


@settings(deadline=None, max_examples=80)
@given(
    steps=steps,
    fates=st.lists(st.sampled_from(["arrive", "twice", "lost", "late"]), min_size=40, max_size=40),
    kept_batches=st.integers(1, 8),
    max_changes=st.integers(1, 12),
)
def test_whatever_is_lost_late_or_doubled_the_index_ends_at_the_truth(
    steps: list[Any], fates: list[str], kept_batches: int, max_changes: int
) -> None:
    index, worker = PrefixIndex(), Worker(kept_batches, max_changes)
    known = replica(index)
    load_snapshot(known, worker)
    late: list[tuple[int, bytes]] = []
    fate = iter(fates)

    def deliver(sequence: int, batch: bytes) -> None:
        try:
            if known.take(sequence, batch) is Verdict.GAP:
                catch_up(known, worker)
        except ImplausibleEvents:  # so late that nobody remembers it
            known.forget()
            load_snapshot(known, worker)

    for name, *arguments in steps:
        match name:
            case "cache":
                worker.cache(*arguments)
            case "clear":
                worker.blocks.clear_cache()
            case "restart":
                index.forget("w")
                worker, late = Worker(kept_batches, max_changes), []
                known = replica(index)
                load_snapshot(known, worker)
                assert credited(index) == set(), "of the epoch before"
            case "publish":
                for sequence, batch in worker.published():
                    happens = next(fate, "arrive")
                    if happens == "late":
                        late.append((sequence, batch))
                    for _ in range({"arrive": 1, "twice": 2}.get(happens, 0)):
                        deliver(sequence, batch)
                if next(fate, "arrive") == "arrive":
                    while late:
                        deliver(*late.pop())
    list(worker.published())
    catch_up(known, worker)
    assert credited(index) == set(worker.blocks.cached_hashes())
    assert index.stored("w") == len(worker.blocks.cached_hashes())


def batch_of(*events: KvEvent) -> bytes:
    return encode_batch(EventBatch(0.0, list(events)))


def stored(*hashes: bytes, block_size: int = BLOCK_SIZE) -> BlockStored:
    return BlockStored(list(hashes), None, NO_TOKENS, block_size)


LIES = {
    "another batch under a number that has passed": (0, batch_of(stored(HASHES[5]))),
    "a negative number": (-5, batch_of(stored(HASHES[5]))),
    "no msgpack": (1, b"\xc1"),
    "half a batch": (1, batch_of(stored(HASHES[5]))[:-3]),
    "an unknown event": (1, msgspec.msgpack.encode([0.0, [["BlockMoved", []]]])),
    "a hash of another length": (1, batch_of(stored(b"short"))),
    "blocks of another size": (1, batch_of(stored(HASHES[5], block_size=32))),
    "more blocks than its pool has": (1, batch_of(stored(*HASHES[: POOL_BLOCKS + 1]))),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_worker_that_lies_is_credited_with_nothing_until_its_next_snapshot(lie: tuple[int, bytes]) -> None:
    index = PrefixIndex()
    known = replica(index)
    assert known.take(0, batch_of(stored(*HASHES[:2]))) is Verdict.APPLIED
    with pytest.raises(ImplausibleEvents):
        known.take(*lie)
    known.forget()
    assert credited(index) == set()
    assert list(known.load(41, [batch_of(AllBlocksCleared(), stored(HASHES[3]))])) == [None]
    assert known.take(42, batch_of(stored(HASHES[4]))) is Verdict.APPLIED
    assert credited(index) == {HASHES[3], HASHES[4]}


@pytest.mark.parametrize(
    ("sequence", "batches"),
    [(3, []), (3, [batch_of()]), (3, [batch_of(stored(HASHES[0]))]), (-1, [batch_of(AllBlocksCleared())])],
    ids=["empty", "no event", "no beginning", "older than what was told"],
)
def test_a_snapshot_that_is_none_is_not_believed(sequence: int, batches: list[bytes]) -> None:
    known = replica(PrefixIndex())
    known.take(0, batch_of(stored(HASHES[0])))
    with pytest.raises(ImplausibleEvents):
        list(known.load(sequence, batches))


def test_batches_are_counted_by_what_became_of_them() -> None:
    counts = EventCounts()
    known = replica(PrefixIndex(), counts)
    first, second = batch_of(stored(*HASHES[:2])), batch_of(stored(HASHES[2]))
    assert [known.take(*taken) for taken in ((0, first), (0, first), (2, second), (1, second))] == [
        Verdict.APPLIED,
        Verdict.KNOWN,
        Verdict.GAP,
        Verdict.APPLIED,
    ]
    assert counts == EventCounts(batches=2, blocks=3, gaps=1, dropped=1)
