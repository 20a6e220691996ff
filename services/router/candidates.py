"""Workers as placement compares them: as columns, so that a choice among a thousand costs a few array operations.

The formulas of `baton.router.prediction` and of `WorkerProfile` are plain arithmetic and take columns as they take
single figures.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from hashlib import blake2s
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from baton.fleet import WorkerProfile
from baton.router.affinity import worker_keys
from baton.router.compiled import is_native_built, native

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker, as far as this request is concerned.

    queued_tokens: prompt tokens ahead of this one. queued_s: seconds that these are predicted to take, where
    the router knows better than by their number. sequences: running or about to. context_tokens: that these
    hold in KV. available_blocks: free or evictable, in blocks as the router counts. queued_sequences: of the
    sequences, whose prompts still queue for a prefill worker. cached_tokens: of this
    prompt, probably. local_prefill_s: of prompts that it was given to compute beside decoding of late, fading
    with `fleet_columns.LOCAL_MEMORY_S`. kv_bytes_per_token: of a hand-off to here; 0: unknown. block_tokens: of its
    own blocks. max_running: sequences in its batch at most. host: two workers of the same one can hand off without
    a network; empty: with nobody.
    """

    worker_id: str
    queued_tokens: int = 0
    queued_s: float = 0.0
    sequences: int = 0
    context_tokens: int = 0
    available_blocks: int = 0
    queued_sequences: int = 0
    cached_tokens: int = 0
    local_prefill_s: float = 0.0
    kv_bytes_per_token: float = 0.0
    block_tokens: int = 1
    max_running: float = math.inf
    host: str = ""
    profile: WorkerProfile = field(default_factory=WorkerProfile)

    @property
    def host_key(self) -> float:
        """A whole number that a double holds; 0 for no host."""
        digest = blake2s(self.host.encode(), digest_size=6).digest()
        return float(int.from_bytes(digest)) if self.host else 0.0

    def load(self) -> tuple[float, ...]:
        """What changes while the worker is there, in the order of `Candidates.LOAD`."""
        return _load_of(self)


class _Speeds(WorkerProfile):
    """A profile of columns. What the workers left open is filled in already."""

    @property
    def prefill_rate(self) -> float:
        return self.prefill_tokens_per_s

    @property
    def first_sequence_s(self) -> float:
        return self.decode_step_s

    @property
    def further_sequence_s(self) -> float:
        return self.decode_s_per_sequence

    @property
    def most_chunk_tokens(self) -> float:
        return self.prefill_chunk_tokens

    @property
    def most_chunk_s(self) -> float:
        return self.prefill_chunk_s


class Candidates:
    """Workers of one role in order of their ids: element i of every column is of worker i.

    The columns have `Candidate`'s names and meanings and are float64 (n,). They are written in place: `write` when
    a worker's load has changed, `write_cached` for each prompt. `row` is one worker in the same form, with numbers
    in place of columns.
    """

    # In the order in which they lie in `figures`, which native code reads, too (`enum Figure` of prediction.h).
    queued_tokens: Column
    queued_s: Column
    sequences: Column
    context_tokens: Column
    available_blocks: Column
    queued_sequences: Column
    cached_tokens: Column
    local_prefill_s: Column
    kv_bytes_per_token: Column
    block_tokens: Column
    max_running: Column
    host_key: Column

    LOAD = slice(0, 6)

    def __init__(self, worker_ids: Sequence[str], figures: Column, keys: npt.NDArray[np.uint64]) -> None:
        """figures: (fields, n), contiguous: the columns above, and then those of `WorkerProfile`."""
        self.worker_ids = worker_ids
        self.keys = keys
        self.figures = figures
        rows = iter(figures)
        vars(self).update(zip(_COLUMNS, rows, strict=False))  # as many as there are names
        self.profile: WorkerProfile = _Speeds(*rows)

    @classmethod
    def of(cls, workers: Iterable[Candidate]) -> Candidates:
        in_order = sorted(workers, key=lambda worker: worker.worker_id)
        ids = [worker.worker_id for worker in in_order]
        figures = [(*_figures_of(worker), *_speeds(worker.profile)) for worker in in_order]
        width = len(_COLUMNS) + len(_PROFILE_FIELDS)
        columns = np.array(figures, np.float64).reshape(len(ids), width).T.copy()
        return cls(ids, columns, worker_keys(ids))

    def __len__(self) -> int:
        return len(self.worker_ids)

    def index(self, worker_id: str) -> int:
        return bisect_left(self.worker_ids, worker_id)

    def write(self, index: int, load: tuple[float, ...]) -> None:
        """load: as `Candidate.load` has it."""
        self.figures[self.LOAD, index] = load

    def write_cached(self, matched_tokens: npt.NDArray[np.int32], slots: npt.NDArray[np.int64]) -> None:
        """What each worker caches of the prompt that is placed next: element slots[i] of `matched_tokens`, down to
        whole blocks of its own. Raises IndexError for a slot that is not there."""
        if is_native_built():
            native.write_cached(self.cached_tokens, self.block_tokens, matched_tokens, slots)
        else:
            tokens = matched_tokens[slots]
            np.subtract(tokens, tokens % self.block_tokens, out=self.cached_tokens)

    def row(self, index: int) -> Candidates:
        return Candidates(self.worker_ids[index : index + 1], self.figures[:, index], self.keys)

    def without_queued(self) -> Candidates:
        """A copy as if the sequences whose prompts still queue were not there, nor their share of the context."""
        present = Candidates(self.worker_ids, self.figures.copy(), self.keys)
        present.sequences -= self.queued_sequences
        present.context_tokens *= present.sequences / np.maximum(1, self.sequences)
        return present

    def without(self, worker_ids: frozenset[str]) -> Candidates:
        """A copy that lacks these."""
        kept = [index for index, worker_id in enumerate(self.worker_ids) if worker_id not in worker_ids]
        ids = [self.worker_ids[index] for index in kept]
        return Candidates(ids, self.figures.take(kept, axis=1), self.keys[kept])


def _speeds(profile: WorkerProfile) -> tuple[float, ...]:
    same_host_latency_s, same_host_bytes_per_s = profile.same_host_link
    known = {
        "same_host_latency_s": same_host_latency_s,
        "same_host_bytes_per_s": same_host_bytes_per_s or math.inf,
        "copy_bytes_per_s": profile.copy_bytes_per_s or math.inf,
        "prefill_tokens_per_s": profile.prefill_rate,
        "decode_step_s": profile.first_sequence_s,
        "decode_s_per_sequence": profile.further_sequence_s,
        "prefill_chunk_tokens": profile.most_chunk_tokens,
        "prefill_chunk_s": profile.most_chunk_s,
    }
    return tuple(
        known.get(name, value) for name, value in zip(_PROFILE_FIELDS, astuple(profile), strict=True)
    )


_COLUMNS = tuple(Candidates.__annotations__)
_PROFILE_FIELDS = tuple(field.name for field in fields(WorkerProfile))
_figures_of = attrgetter(*_COLUMNS)
_load_of = attrgetter(*_COLUMNS[Candidates.LOAD])
