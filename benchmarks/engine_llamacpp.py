"""llama.cpp as `engine.py` measures it: its C interface, by way of llama-cpp-python, greedy."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engine_gguf
import llama_cpp
import numpy as np
from engine_work import Work, answer, command, prompts

MAX_TOKENS = 2560
MAX_STEPS = 64

Tokens = Sequence[tuple[int, int, int, bool]]
"""Token id, position, sequence, and whether its logits are wanted."""


def _ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp tells much that nobody asked for."""


_quiet = llama_cpp.llama_log_callback(_ignore)


class LlamaCpp:
    def __init__(self) -> None:
        folder, self._threads = command(sys.argv[1:])
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        file = Path(folder) / "model.gguf"
        engine_gguf.write(folder, file)
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        self._vocab_size = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(MAX_TOKENS, 0, 1)

    def burst(self, work: Work, repetitions: int) -> list[float]:
        self._context = llama_cpp.llama_init_from_model(self._model, self._parameters(work))
        if not self._context:
            raise SystemExit("llama.cpp could not make a context")
        try:
            return self._seconds(work, repetitions)
        finally:
            llama_cpp.llama_free(self._context)

    def _parameters(self, work: Work) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = work.batch * (work.tokens + MAX_STEPS), work.batch
        parameters.n_batch, parameters.n_ubatch = MAX_TOKENS, 512
        parameters.n_threads = parameters.n_threads_batch = self._threads
        return parameters

    def _seconds(self, work: Work, repetitions: int) -> list[float]:
        if work.kind == "prefill":
            return [self._prefill(work)[1] for _ in range(repetitions + 1)][1:]
        ids, _ = self._prefill(work)
        seconds = []
        for position in range(work.tokens, work.tokens + repetitions + 1):
            ids, step_s = self._compute([(ids[i], position, i, True) for i in range(work.batch)])
            seconds.append(step_s)
        return seconds[1:]

    def _prefill(self, work: Work) -> tuple[list[int], float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        tokens = [
            (token, position, sequence, position == work.tokens - 1)
            for sequence, ids in enumerate(prompts(work))
            for position, token in enumerate(ids)
        ]
        ids: list[int] = []
        seconds = 0.0
        a_time = MAX_TOKENS // work.tokens * work.tokens
        for start in range(0, len(tokens), a_time):
            chosen, chunk_s = self._compute(tokens[start : start + a_time])
            ids += chosen
            seconds += chunk_s
        return ids, seconds

    def _compute(self, tokens: Tokens) -> tuple[list[int], float]:
        """The likeliest token behind each that is asked, and the seconds that this took."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence, is_asked) in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, is_asked
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")
        chosen = [self._most_likely(row) for row, token in enumerate(tokens) if token[3]]
        return chosen, time.perf_counter() - start

    def _most_likely(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())


if __name__ == "__main__":
    answer(LlamaCpp())
