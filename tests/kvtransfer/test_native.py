"""The native module refuses what would read or write outside a buffer, before anything moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

native = pytest.importorskip("baton.kvtransfer.native", reason="installed where there was no C compiler")

ARGUMENTS: dict[str, Any] = {
    "source": bytes(4 * 256),
    "source_ids": np.array([3, 0], np.int64),
    "target": bytearray(4 * 256),
    "target_ids": np.array([1, 2], np.int64),
    "rows": 2,
    "row_bytes": 256,
    "chunk_rows": 2,
    "digests": bytearray(8),
    "past_caches": True,
}


@pytest.mark.parametrize(
    ("changed", "error", "complaint"),
    [
        ({"source_ids": np.array([4, 0])}, IndexError, "source row 4 is outside 0 to 3"),
        ({"source_ids": np.array([0, -1])}, IndexError, "source row -1 is outside 0 to 3"),
        (
            {"target_ids": np.array([1, 2**62])},
            IndexError,
            "target row 4611686018427387904 is outside 0 to 3",
        ),
        ({"source": bytes(256), "source_ids": b""}, IndexError, "source has 1 rows, not 2"),
        ({"source_ids": np.array([3])}, ValueError, "ids of 8 and 16 bytes"),
        ({"rows": -1}, ValueError, "-1 rows of 256 bytes"),
        ({"row_bytes": 100}, ValueError, "2 rows of 100 bytes .a multiple of 64."),
        ({"row_bytes": 0}, ValueError, "2 rows of 0 bytes"),
        ({"row_bytes": 64}, ValueError, "rows of 64 bytes: digests want at least 256"),
        ({"chunk_rows": 0}, ValueError, "chunks of 0"),
        ({"digests": bytearray(16)}, ValueError, "digests of 16 bytes for 2 rows in chunks of 2"),
        ({"target": bytes(4 * 256)}, TypeError, "read-write"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    changed: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    arguments = ARGUMENTS | changed
    with pytest.raises(error, match=complaint):
        native.move(*arguments.values())
    assert bytes(arguments["target"]) == bytes(4 * 256)
