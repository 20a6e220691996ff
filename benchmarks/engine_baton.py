"""Baton's engine as `engine.py` measures it: scheduler and HTTP left out, sampling included.

Beside the works of all contenders it answers "limits" (see `engine_limits.py`), "outside" (shares of decode steps
that are spent outside the model's kernels) and "step" (decode steps behind a cache of zeros, not computed).
"""

from __future__ import annotations

import sys
import time

import engine_limits
from engine_kernel_time import KernelTime
from engine_work import Work, answer, command, prompts

from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.engine_config import EngineConfig
from baton.engine.sequence import Sequence
from baton.request import GenerationRequest, SamplingParams

KV_BLOCKS = 4608


class Baton:
    def __init__(self) -> None:
        folder, threads = command(sys.argv[1:])
        self._engine = Engine(EngineConfig(folder, threads=threads, kv_blocks=KV_BLOCKS))

    def burst(self, work: Work, repetitions: int) -> list[float]:
        if work.kind == "limits":
            return list(engine_limits.measure())
        if work.kind == "prefill":
            return [self._prefill(work)[1] for _ in range(repetitions + 1)][1:]
        sequences = self._cached(work) if work.kind == "step" else self._prefill(work, keep=True)[0]
        for sequence in sequences:
            self._engine.grow(sequence, work.tokens + repetitions + 2)
        decode = self._outside if work.kind == "outside" else self._step
        figures = [decode([Chunk(each, 1, (each,)) for each in sequences]) for _ in range(repetitions + 1)]
        self._free(sequences)
        return figures[1:]

    def _new_sequences(self, work: Work) -> list[Sequence]:
        sampling = SamplingParams(max_tokens=1024, temperature=0.0, ignore_eos=True)
        sequences = []
        for number, ids in enumerate(prompts(work)):
            request = GenerationRequest(request_id=str(number), token_ids=tuple(ids), sampling=sampling)
            sequences.append(self._engine.new_sequence(request, 0))
            self._engine.grow(sequences[-1], work.tokens)
        return sequences

    def _prefill(self, work: Work, keep: bool = False) -> tuple[list[Sequence], float]:
        sequences = self._new_sequences(work)
        seconds = self._step([Chunk(each, work.tokens, (each,)) for each in sequences])
        if not keep:
            self._free(sequences)
        return sequences, seconds

    def _cached(self, work: Work) -> list[Sequence]:
        """Sequences behind `work.tokens` tokens whose keys and values are zeros."""
        sequences = self._new_sequences(work)
        for sequence in sequences:
            self._engine.pool.bytes_view[sequence.block_ids] = 0
            sequence.computed_tokens = work.tokens - 1
        return sequences

    def _step(self, chunks: list[Chunk]) -> float:
        start = time.perf_counter()
        self._engine.run(chunks)
        return time.perf_counter() - start

    def _outside(self, chunks: list[Chunk]) -> float:
        """The share of a step that is not spent in the model's kernels."""
        with KernelTime() as kernels:
            seconds = self._step(chunks)
        return 1 - kernels.seconds / seconds

    def _free(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._engine.free(sequence)


if __name__ == "__main__":
    answer(Baton())
