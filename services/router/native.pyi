from collections.abc import Sequence

from numpy import float64, int32, int64, uint64
from numpy.typing import NDArray

class BlockTable:
    """As `baton.router.block_table.BlockTable`, with the two numbers that its hash function is keyed by."""

    def __new__(cls, max_pairs: int, key: int, other_key: int, /) -> BlockTable: ...
    def store(self, slot: int, hashes: bytes, /) -> None: ...
    def remove(self, slot: int, hashes: bytes, /) -> None: ...
    def expect(self, slot: int, hashes: bytes, /) -> None: ...
    def settle(self, slot: int, hashes: bytes, /) -> None: ...
    def shrink(self, slot: int, count: int, /) -> None: ...
    def match(self, slot: int, hashes: bytes, /) -> int: ...
    def match_all(self, hashes: bytes, leading: NDArray[int32], /) -> None: ...
    def stored(self, slot: int, /) -> int: ...
    def stats(self) -> tuple[int, int, int, int]: ...

def hash_blocks(seed: bytes, token_ids: Sequence[int], block_size: int, /) -> bytes:
    """`baton.block_hash.block_hashes`, packed. Raises ValueError for a seed that is not 16 bytes or a block size
    below 1, OverflowError for a token id that is no unsigned number of 32 bits."""

def hash_blocks_portably(seed: bytes, token_ids: Sequence[int], block_size: int, /) -> bytes:
    """The same without the processor's instructions for SHA-256."""

def write_cached(
    cached_tokens: NDArray[float64],
    block_tokens: NDArray[float64],
    matched_tokens: NDArray[int32],
    slots: NDArray[int64],
    /,
) -> None:
    """`baton.router.candidates.Candidates.write_cached`, into `cached_tokens`. Raises ValueError for columns of
    unequal length, IndexError for a slot that is not there."""

def choose_predicted(
    prefill_figures: NDArray[float64],
    prefill_keys: NDArray[uint64],
    decode_figures: NDArray[float64],
    decode_keys: NDArray[uint64],
    prompt_tokens: int,
    blocks: int,
    choices: int,
    mode: int,
    waited_s: float,
    ttft_s: float,
    tpot_s: float | None,
    session_hash: int | None,
    ordinal: int,
    /,
) -> tuple[int, int]:
    """Where `baton.router.policies.predicted` places a prompt: the prefill worker's place in its pool, or -1 for a
    local prefill, and the decode worker's. The columns are those of `baton.router.candidates.Candidates`; mode: 0
    auto, 1 always, 2 never. Raises ValueError for columns of another form, or no decode worker."""

def predict(
    prefill_figures: NDArray[float64],
    prefill_keys: NDArray[uint64],
    prefill: int,
    decode_figures: NDArray[float64],
    decode_keys: NDArray[uint64],
    decode: int,
    prompt_tokens: int,
    blocks: int,
    choices: int,
    /,
) -> tuple[int, float, float, float, float, float]:
    """The fields of `baton.router.prediction.Prediction` for one worker of each pool, prefill -1 for a local
    prefill. Raises ValueError for columns of another form, IndexError for workers that are not there."""
