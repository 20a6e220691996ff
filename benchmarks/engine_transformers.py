"""Hugging Face transformers as `engine.py` measures it: eager, sdpa, its own cache, greedy."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from engine_work import Work, answer, command, prompts
from transformers import AutoModelForCausalLM


class Transformers:
    def __init__(self) -> None:
        folder, threads = command(sys.argv[1:])
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    @torch.inference_mode()
    def burst(self, work: Work, repetitions: int) -> list[float]:
        ids = torch.tensor(prompts(work))
        if work.kind == "prefill":
            return [self._step(ids, None)[2] for _ in range(repetitions + 1)][1:]
        ids, cache, _ = self._step(ids, None)
        seconds = []
        for _ in range(repetitions + 1):
            ids, cache, step_s = self._step(ids, cache)
            seconds.append(step_s)
        return seconds[1:]

    def _step(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any, float]:
        """The next tokens, int64 [batch, 1], the cache, and the seconds that both took."""
        start = time.perf_counter()
        output = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        chosen = output.logits.argmax(-1)
        return chosen, output.past_key_values, time.perf_counter() - start


if __name__ == "__main__":
    answer(Transformers())
