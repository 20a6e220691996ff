"""Rows of bytes, gathered, scattered and digested: in one native pass (`native.c`), or by numpy and xxhash.

The native way takes rows whose length is a multiple of 64 bytes, as KV blocks' are; it needs a C compiler where the
package is installed. Both ways give the same bytes and the same digests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

try:
    from baton.kvtransfer import native as native
except ImportError:  # installed where there was no compiler
    native = None  # type: ignore[assignment]

Rows = NDArray[np.void]
"""[n] items of as many bytes as a row has."""

Ids = NDArray[np.int64]
Digests = NDArray[np.uint64]
"""One XXH3-64 for each chunk of rows, in order."""

MIN_NATIVE_BYTES = 256
IN_ORDER: Ids = np.empty(0, np.int64)
"""Instead of ids: the first rows, one after the other."""

_NO_TARGET: Rows = np.empty(0, np.dtype((np.void, 1)))
_NO_DIGESTS: Digests = np.empty(0, np.uint64)


def is_native_built() -> bool:
    return native is not None


def digest(source: Rows, ids: Ids, count: int, chunk_rows: int) -> Digests:
    """Of rows ids[0:count] of `source`, or of its first `count`."""
    digests = np.empty(-(-count // chunk_rows), np.uint64)
    if _is_native(source):
        native.move(
            source, ids, _NO_TARGET, IN_ORDER, count, source.dtype.itemsize, chunk_rows, digests, False
        )
        return digests
    for index, start in enumerate(range(0, count, chunk_rows)):
        chunk = _pick(source, ids, start, min(count, start + chunk_rows))
        digests[index] = xxh3_64_intdigest(chunk.data)
    return digests


def gather(source: Rows, ids: Ids, target: Rows, chunk_rows: int, with_digests: bool) -> Digests:
    """Copies rows `ids` of `source` to the front of `target`, which stays in the caches. Ids were checked."""
    digests = _digests_for(len(ids), chunk_rows, with_digests)
    if _is_native(source):
        row_bytes = source.dtype.itemsize
        native.move(source, ids, target, IN_ORDER, len(ids), row_bytes, chunk_rows, digests, False)
        return digests
    # mode="clip" lets numpy copy straight into `out`; no id is ever out of range here.
    source.take(ids, out=target[: len(ids)], mode="clip")
    return digest(target, IN_ORDER, len(ids), chunk_rows) if with_digests else digests


def move(
    source: Rows, source_ids: Ids, target: Rows, target_ids: Ids, chunk_rows: int, with_digests: bool
) -> Digests:
    """Copies row source_ids[i], or i, of `source` to row target_ids[i] of `target`, past the caches. The
    digests are of what was written. Ids were checked."""
    digests = _digests_for(len(target_ids), chunk_rows, with_digests)
    if _is_native(source):
        row_bytes = source.dtype.itemsize
        native.move(
            source, source_ids, target, target_ids, len(target_ids), row_bytes, chunk_rows, digests, True
        )
        return digests
    for index, start in enumerate(range(0, len(target_ids), chunk_rows)):
        chunk = _pick(source, source_ids, start, min(len(target_ids), start + chunk_rows))
        if with_digests:
            digests[index] = xxh3_64_intdigest(chunk.data)
        target.put(target_ids[start : start + len(chunk)], chunk, mode="clip")
    return digests


def _is_native(source: NDArray[Any]) -> bool:
    row_bytes = source.dtype.itemsize
    return native is not None and row_bytes >= MIN_NATIVE_BYTES and row_bytes % 64 == 0


def _digests_for(count: int, chunk_rows: int, with_digests: bool) -> Digests:
    return np.empty(-(-count // chunk_rows), np.uint64) if with_digests else _NO_DIGESTS


def _pick(source: Rows, ids: Ids, first: int, last: int) -> Rows:
    return source.take(ids[first:last], mode="clip") if len(ids) else source[first:last]
