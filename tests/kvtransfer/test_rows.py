"""Rows move and are digested alike by the native way and by numpy's, and xxhash says the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from baton.kvtransfer import rows

ROW_BYTES = st.sampled_from([1, 40, 64, 192, 256, 320, 1000, 1024, 1088, 4096])
COUNTS = st.integers(1, 40)
CHUNKS = st.sampled_from([1, 2, 7, 64])


@pytest.fixture(scope="module", params=["native", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    built = rows.native
    if request.param == "numpy":
        rows.native = None  # type: ignore[assignment]
    elif built is None:
        pytest.skip("installed where there was no C compiler")
    yield
    rows.native = built


def pool_of(seed: int, count: int, row_bytes: int) -> rows.Rows:
    content = np.random.default_rng(seed).integers(0, 256, count * row_bytes, np.uint8)
    return content.view(np.dtype((np.void, row_bytes)))


def ids_of(seed: int, count: int) -> rows.Ids:
    return np.random.default_rng(seed).permutation(2 * count)[:count]


def expected_digests(picked: rows.Rows, chunk_rows: int) -> list[int]:
    chunks = (picked[at : at + chunk_rows] for at in range(0, len(picked), chunk_rows))
    return [xxh3_64_intdigest(chunk.tobytes()) for chunk in chunks]


@given(count=COUNTS, row_bytes=ROW_BYTES, chunk_rows=CHUNKS, seed=st.integers(0, 9))
def test_digests_are_xxh3_of_each_chunk(count: int, row_bytes: int, chunk_rows: int, seed: int) -> None:
    pool, ids = pool_of(seed, 2 * count, row_bytes), ids_of(seed, count)
    assert rows.digest(pool, ids, count, chunk_rows).tolist() == expected_digests(pool[ids], chunk_rows)
    in_order = rows.digest(pool, rows.IN_ORDER, count, chunk_rows).tolist()
    assert in_order == expected_digests(pool[:count], chunk_rows)


@given(count=COUNTS, row_bytes=ROW_BYTES, chunk_rows=CHUNKS, is_checked=st.booleans())
def test_gathered_rows_are_the_ones_named(
    count: int, row_bytes: int, chunk_rows: int, is_checked: bool
) -> None:
    pool, ids, target = pool_of(1, 2 * count, row_bytes), ids_of(2, count), pool_of(3, count + 1, row_bytes)
    last = target[-1:].tobytes()
    digests = rows.gather(pool, ids, target, chunk_rows, is_checked)
    assert target[:count].tobytes() == pool[ids].tobytes()
    assert target[-1:].tobytes() == last
    assert digests.tolist() == (expected_digests(pool[ids], chunk_rows) if is_checked else [])


@given(count=COUNTS, row_bytes=ROW_BYTES, chunk_rows=CHUNKS, is_checked=st.booleans(), in_order=st.booleans())
def test_moved_rows_land_where_they_belong_and_nowhere_else(
    count: int, row_bytes: int, chunk_rows: int, is_checked: bool, in_order: bool
) -> None:
    pool, target = pool_of(1, 2 * count, row_bytes), pool_of(2, 2 * count, row_bytes)
    source_ids = rows.IN_ORDER if in_order else ids_of(3, count)
    picked = pool[:count] if in_order else pool[source_ids]
    target_ids = ids_of(4, count)
    expected = target.copy()
    expected[target_ids] = picked
    digests = rows.move(pool, source_ids, target, target_ids, chunk_rows, is_checked)
    assert target.tobytes() == expected.tobytes()
    assert digests.tolist() == (expected_digests(picked, chunk_rows) if is_checked else [])


def test_rows_at_odd_addresses_move_as_well() -> None:
    buffer, content = np.zeros(8 * 256 + 1, np.uint8), pool_of(1, 8, 256)
    target = buffer[1:].view(np.dtype((np.void, 256)))
    rows.move(content, rows.IN_ORDER, target, np.arange(8), 4, with_digests=False)
    assert buffer[1:].tobytes() == content.tobytes()
