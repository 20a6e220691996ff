"""The index of who holds which block: natively and in plain Python the same, and both what a few sets would say."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.block_table import BlockTable
from baton.router.compiled import is_native_built, native
from baton.router.prefix_index import PrefixIndex

Table = Any  # the native class where it is built, else the one in Python
MAKERS: dict[str, Callable[[int], Table]] = {"python": BlockTable}
if is_native_built():
    MAKERS["native"] = lambda max_pairs: native.BlockTable(max_pairs, 3, 5)

needs_native = pytest.mark.skipif("native" not in MAKERS, reason="the native index is not built here")

HASHES = [sha256(bytes([i])).digest()[:16] for i in range(12)]
SLOTS = [0, 1, 2, 3, 4, 5, 63, 64, 130, 8191]

runs = st.tuples(st.integers(0, 11), st.integers(0, 8)).map(lambda r: b"".join(HASHES[r[0] : r[0] + r[1]]))
calls = st.lists(
    st.tuples(st.sampled_from(["store", "remove", "expect", "settle"]), st.sampled_from(SLOTS), runs)
    | st.tuples(st.just("shrink"), st.sampled_from(SLOTS), st.integers(0, 6)),
    max_size=60,
)


def answers(table: Table) -> object:
    """All that can be asked of a table. Asking marks blocks as referenced, in both tables alike."""
    leading = []
    for start in range(len(HASHES)):
        row = np.full(8192, -1, np.int32)
        table.match_all(b"".join(HASHES[start:]), row)
        leading.append(row.tolist())
    single = [table.match(slot, b"".join(HASHES)) for slot in SLOTS]
    return leading, single, [table.stored(slot) for slot in SLOTS], table.stats()[:2], table.stats()[3]


@needs_native
@settings(deadline=None, max_examples=60)
@given(steps=calls, max_pairs=st.integers(1, 30))
def test_native_and_python_tables_agree_whatever_is_evicted(steps: list[Any], max_pairs: int) -> None:
    tables = [make(max_pairs) for make in MAKERS.values()]
    for name, *arguments in steps:
        for table in tables:
            getattr(table, name)(*arguments)
        assert tables[0].stats()[0] <= max_pairs
    assert answers(tables[0]) == answers(tables[1])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@settings(deadline=None, max_examples=60)
@given(steps=calls)
def test_a_table_with_room_holds_what_is_claimed(make: Callable[[int], Table], steps: list[Any]) -> None:
    table = make(10_000)
    stored: set[tuple[int, bytes]] = set()
    expected: dict[tuple[int, bytes], int] = {}
    for name, slot, value in steps:
        if name == "shrink":
            continue  # its order is that of the other test
        getattr(table, name)(slot, value)
        for pair in ((slot, value[i : i + 16]) for i in range(0, len(value), 16)):
            match name:
                case "store":
                    stored.add(pair)
                case "remove":
                    stored.discard(pair)
                case "expect":
                    expected[pair] = expected.get(pair, 0) + 1
                case "settle":
                    expected[pair] = max(0, expected.get(pair, 0) - 1)
    held = stored | {pair for pair, count in expected.items() if count}
    for slot in SLOTS:
        leading = next((i for i, h in enumerate(HASHES) if (slot, h) not in held), len(HASHES))
        assert table.match(slot, b"".join(HASHES)) == leading
        assert table.stored(slot) == sum(pair[0] == slot for pair in stored)
    assert table.stats()[0] == len(held)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_full_table_spares_what_was_asked_for(make: Callable[[int], Table]) -> None:
    table = make(4)
    table.store(0, b"".join(HASHES[:4]))
    assert table.match(0, HASHES[0]) == 1
    table.store(1, b"".join(HASHES[4:7]))
    assert table.match(0, HASHES[0]) == 1, "asked for since it came"
    assert [table.match(0, h) for h in HASHES[1:4]] == [0, 0, 0]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_bytes_that_are_no_hashes_are_refused(make: Callable[[int], Table]) -> None:
    with pytest.raises(ValueError, match="17 bytes are no hashes of 16"):
        make(4).store(0, bytes(17))


@needs_native
def test_the_native_table_refuses_slots_and_buffers_that_it_would_write_behind() -> None:
    table = MAKERS["native"](4)
    with pytest.raises(ValueError, match="slot 8192: 8192 is the limit"):
        table.store(8192, HASHES[0])
    table.store(7, HASHES[0])
    with pytest.raises(ValueError, match="room for 7 workers of 8"):
        table.match_all(HASHES[0], np.empty(7, np.int32))


def test_blocks_of_many_workers_are_told_apart() -> None:
    index = PrefixIndex()
    for number in range(1000):
        index.store(f"w{number}", HASHES[: number % 13])
    for hashes in (HASHES, b"".join(HASHES)):
        leading = index.match_all(hashes)
        assert [leading[index.slot(f"w{n}")] for n in range(1000)] == [n % 13 for n in range(1000)]


def test_a_slot_given_to_another_worker_brings_nothing_along() -> None:
    index = PrefixIndex()
    index.store("old", HASHES)
    index.expect("old", HASHES)
    old_slot = index.slot("old")
    index.forget("old")
    assert index.slot("new") == old_slot
    assert index.match_all(HASHES)[old_slot] == 0
    assert index.stats().pairs == 0


def test_what_is_expected_counts_until_it_is_settled_and_after_that_if_it_was_stored() -> None:
    index = PrefixIndex()
    index.expect("w", HASHES[:6])
    assert index.match("w", HASHES) == 6
    index.store("w", HASHES[:2])
    index.settle("w", HASHES[:6])
    assert index.match("w", HASHES) == 2
