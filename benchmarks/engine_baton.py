"""Baton's engine as `engine.py` measures it: scheduler and HTTP left out, sampling included."""

from __future__ import annotations

import sys
import time

from engine_work import Work, answer, command, prompts

from baton.engine.batch import Chunk
from baton.engine.engine import Engine, EngineConfig
from baton.engine.sequence import Sequence
from baton.request import GenerationRequest, SamplingParams

KV_BLOCKS = 1024


class Baton:
    def __init__(self) -> None:
        folder, threads = command(sys.argv[1:])
        self._engine = Engine(EngineConfig(folder, threads=threads, kv_blocks=KV_BLOCKS))

    def burst(self, work: Work, repetitions: int) -> list[float]:
        if work.kind == "prefill":
            return [self._prefill(work)[1] for _ in range(repetitions + 1)][1:]
        sequences, _ = self._prefill(work, keep=True)
        for sequence in sequences:
            self._engine.grow(sequence, work.tokens + repetitions + 2)
        seconds = [
            self._step([Chunk(each, 1, (each,)) for each in sequences]) for _ in range(repetitions + 1)
        ]
        self._free(sequences)
        return seconds[1:]

    def _prefill(self, work: Work, keep: bool = False) -> tuple[list[Sequence], float]:
        sampling = SamplingParams(max_tokens=1024, temperature=0.0, ignore_eos=True)
        sequences = []
        for number, ids in enumerate(prompts(work)):
            request = GenerationRequest(request_id=str(number), token_ids=tuple(ids), sampling=sampling)
            sequences.append(self._engine.new_sequence(request, 0))
            self._engine.grow(sequences[-1], work.tokens)
        seconds = self._step([Chunk(each, work.tokens, (each,)) for each in sequences])
        if not keep:
            self._free(sequences)
        return sequences, seconds

    def _step(self, chunks: list[Chunk]) -> float:
        start = time.perf_counter()
        self._engine.run(chunks)
        return time.perf_counter() - start

    def _free(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._engine.free(sequence)


if __name__ == "__main__":
    answer(Baton())
