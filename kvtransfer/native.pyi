from typing import Any

from numpy.typing import NDArray

Readable = bytes | bytearray | NDArray[Any]
Writable = bytearray | NDArray[Any]

def move(
    source: Readable,
    source_ids: Readable,
    target: Writable,
    target_ids: Readable,
    rows: int,
    row_bytes: int,
    chunk_rows: int,
    digests: Writable,
    past_caches: bool,
) -> None: ...
