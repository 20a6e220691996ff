"""How long a request would take on a pair of workers, term by term, from their own measured profiles."""

from __future__ import annotations

from dataclasses import dataclass

from baton.router.snapshot import Candidate, Demand


@dataclass(frozen=True, slots=True)
class Prediction:
    """prefill_tokens: of the prompt, not cached. Seconds: queue_s: until the prompt's turn. prefill_s: to compute
    these tokens. reserve_s: until
    the decode worker has memory. handoff_s: what is still under way once the prompt is computed. step_s: a
    decode step with this request in the batch."""

    prefill_tokens: int
    queue_s: float
    prefill_s: float
    reserve_s: float
    handoff_s: float
    step_s: float

    @property
    def ttft_s(self) -> float:
        """The first token comes from the prompt's own logits; memory is reserved while it is computed."""
        return self.queue_s + max(self.prefill_s, self.reserve_s)

    @property
    def second_token_s(self) -> float:
        """From arrival: after the hand-off and one decode step."""
        return self.ttft_s + self.handoff_s + self.step_s

    @property
    def tpot_s(self) -> float:
        """Of a long answer: the hand-off, a part of the first gap, is not spread over it."""
        return self.step_s


def predict(prefill: Candidate | None, decode: Candidate, demand: Demand) -> Prediction:
    """For a hand-off from `prefill`, or with None for a local prefill on `decode`."""
    prompt_s = prefill_s(prefill or decode, demand)
    return Prediction(
        prefill_tokens=prefill_tokens(prefill or decode, demand),
        queue_s=queue_s(prefill or decode),
        prefill_s=prompt_s,
        reserve_s=reserve_s(decode, demand),
        handoff_s=0.0 if prefill is None else handoff_s(prefill, decode, demand, prompt_s),
        step_s=step_s(decode, demand),
    )


def queue_s(candidate: Candidate) -> float:
    """What the router knows of its own prompts, or what the worker reports: others' prompts, of lengths unknown."""
    return max(candidate.queued_s, candidate.queued_tokens / candidate.profile.prefill_rate)


def prefill_tokens(candidate: Candidate, demand: Demand) -> int:
    """The tokens that are not cached; the last one always is computed, for its logits."""
    return max(1, demand.prompt_tokens - candidate.cached_tokens)


def prefill_s(candidate: Candidate, demand: Demand) -> float:
    uncached_tokens = prefill_tokens(candidate, demand)
    return candidate.profile.prefill_s(uncached_tokens, demand.prompt_tokens - uncached_tokens)


def reserve_s(decode: Candidate, demand: Demand) -> float:
    """Each block that is lacking waits a step: about the rate at which a batch of a block's length returns them."""
    lacking_blocks = demand.blocks - decode.available_blocks
    if lacking_blocks <= 0:
        return 0.0
    return lacking_blocks * decode.profile.step_s(decode.sequences, decode.context_tokens)


def step_s(decode: Candidate, demand: Demand) -> float:
    sequences = decode.sequences + demand.choices
    return decode.profile.step_s(sequences, decode.context_tokens + demand.prompt_tokens)


def handoff_s(prefill: Candidate, decode: Candidate, demand: Demand, prompt_s: float) -> float:
    """Blocks leave while the next ones are computed; of a link that keeps up only the last one is left over.
    The latency alone where the bandwidth or the size is unknown."""
    latency_s = prefill.profile.handoff_latency_s
    bandwidth = min(prefill.profile.copy_bytes_per_s, decode.profile.copy_bytes_per_s)
    if not bandwidth:
        return latency_s
    lacking_tokens = max(0, demand.prompt_tokens - decode.cached_tokens)
    transfer_s = lacking_tokens * decode.kv_bytes_per_token / bandwidth
    return latency_s + max(transfer_s - prompt_s, transfer_s / max(1, demand.blocks))
