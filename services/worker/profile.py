"""How fast this worker is, measured on its own engine before it registers; leaves the pool as it was."""

from __future__ import annotations

import time

import torch

from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.fleet import WorkerProfile
from baton.request import GenerationRequest, SamplingParams

_PROMPT_TOKENS = 256
_DECODE_STEPS = 4
_COPY_BYTES = 16 << 20


def measure_profile(engine: Engine) -> WorkerProfile:
    """Prefill rate over one prompt of up to 256 tokens, step time over four decode steps at batch 1, copy
    rate over 16 MiB; each after one warm-up."""
    _measure_sequence(engine)
    prefill_s, prompt_tokens, step_s = _measure_sequence(engine)
    engine.blocks.clear_cache()
    return WorkerProfile(prompt_tokens / prefill_s, step_s, _measure_copy())


def _measure_sequence(engine: Engine) -> tuple[float, int, float]:
    prompt_tokens = min(_PROMPT_TOKENS, engine.max_model_tokens - _DECODE_STEPS - 1)
    sampling = SamplingParams(max_tokens=_DECODE_STEPS + 1, temperature=0.0, ignore_eos=True)
    request = GenerationRequest("profile", (0,) * prompt_tokens, sampling, cache_salt="\0profile")
    sequence = engine.new_sequence(request, 0)
    engine.grow(sequence, prompt_tokens + _DECODE_STEPS)
    began_at_s = time.perf_counter()
    engine.run([Chunk(sequence, prompt_tokens, (sequence,))])
    prefilled_at_s = time.perf_counter()
    for _ in range(_DECODE_STEPS):
        engine.run([Chunk(sequence, 1, (sequence,))])
    ended_at_s = time.perf_counter()
    engine.free(sequence)
    return prefilled_at_s - began_at_s, prompt_tokens, (ended_at_s - prefilled_at_s) / _DECODE_STEPS


def _measure_copy() -> float:
    source, target = (torch.zeros(_COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    began_at_s = time.perf_counter()
    target.copy_(source)
    return _COPY_BYTES / (time.perf_counter() - began_at_s)
