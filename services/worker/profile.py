"""How fast this worker is, measured on its own engine before it registers; leaves the pool as it was."""

from __future__ import annotations

import time

import torch

from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.sequence import Sequence
from baton.fleet import WorkerProfile
from baton.request import GenerationRequest, SamplingParams

_PROMPT_TOKENS = 256
_SHORT_TOKENS = 32
_DECODE_STEPS = 4
_BATCH = 4
_COPY_BYTES = 16 << 20


def measure_profile(engine: Engine) -> WorkerProfile:
    """Prefill over prompts of up to 32 and 256 tokens; the shortest of four decode steps at batch 1 over either,
    and at batch 4 over the short one; copies of 16 MiB. Each after a warm-up.

    Two lengths tell apart what grows with the tokens and what with their pairs, two contexts and two batches the
    rest of a step. What noise hides is 0.
    """
    long_tokens = min(_PROMPT_TOKENS, engine.max_model_tokens - _DECODE_STEPS - 1)
    short_tokens = min(_SHORT_TOKENS, long_tokens)
    batch = min(_BATCH, engine.blocks.num_blocks // engine.blocks_for(short_tokens + _DECODE_STEPS))
    _measure(engine, long_tokens, 1)
    long_s, long_step_s = _measure(engine, long_tokens, 1)
    short_s, short_step_s = _measure(engine, short_tokens, 1)
    _, batch_step_s = _measure(engine, short_tokens, batch)
    engine.blocks.clear_cache()
    per_pair_s = _slope(short_s / short_tokens, long_s / long_tokens, (long_tokens - short_tokens) / 2)
    per_context_s = _slope(short_step_s, long_step_s, long_tokens - short_tokens)
    per_sequence_s = _slope(short_step_s, batch_step_s, batch - 1) - short_tokens * per_context_s
    return WorkerProfile(
        prefill_tokens_per_s=long_tokens / max(long_s / 2, long_s - long_tokens**2 / 2 * per_pair_s),
        decode_step_s=max(short_step_s / 2, short_step_s - short_tokens * per_context_s),
        copy_bytes_per_s=_measure_copy(),
        prefill_s_per_pair=per_pair_s,
        decode_s_per_sequence=max(0.0, per_sequence_s),
        decode_s_per_context_token=per_context_s,
    )


def _slope(low: float, high: float, distance: float) -> float:
    return max(0.0, high - low) / distance if distance else 0.0


def _measure(engine: Engine, prompt_tokens: int, batch: int) -> tuple[float, float]:
    """Seconds to compute one prompt, and of the shortest decode step of `batch` sequences that follow such ones."""
    sequences = [_new_sequence(engine, prompt_tokens, number) for number in range(batch)]
    began_at_s = time.perf_counter()
    engine.run([Chunk(sequences[0], prompt_tokens, (sequences[0],))])
    prefill_s = time.perf_counter() - began_at_s
    for sequence in sequences[1:]:
        engine.run([Chunk(sequence, prompt_tokens, (sequence,))])
    step_s = min(_step_s(engine, sequences) for _ in range(_DECODE_STEPS))
    for sequence in sequences:
        engine.free(sequence)
    return prefill_s, step_s


def _new_sequence(engine: Engine, prompt_tokens: int, number: int) -> Sequence:
    sampling = SamplingParams(max_tokens=_DECODE_STEPS + 1, temperature=0.0, ignore_eos=True)
    name = f"profile {number}"
    request = GenerationRequest(name, (0,) * prompt_tokens, sampling, cache_salt=f"\0{name}")
    sequence = engine.new_sequence(request, 0)
    engine.grow(sequence, prompt_tokens + _DECODE_STEPS)
    return sequence


def _step_s(engine: Engine, sequences: list[Sequence]) -> float:
    began_at_s = time.perf_counter()
    engine.run([Chunk(sequence, 1, (sequence,)) for sequence in sequences])
    return time.perf_counter() - began_at_s


def _measure_copy() -> float:
    source, target = (torch.zeros(_COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    began_at_s = time.perf_counter()
    target.copy_(source)
    return _COPY_BYTES / (time.perf_counter() - began_at_s)
