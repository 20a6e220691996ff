"""How long a request would take on a pair of workers, term by term, from their own measured profiles.

The terms take one worker (`Candidates.row`) and give a number, or take all and give a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baton.router.candidates import Candidates, Column
from baton.router.compiled import is_native_built, native
from baton.router.snapshot import Demand, Snapshot


@dataclass(frozen=True, slots=True)
class Prediction:
    """prefill_tokens: of the prompt, not cached. Seconds: queue_s: until the prompt's turn. prefill_s: to compute
    these tokens. reserve_s: until the decode worker has memory. handoff_s: what is still under way once the prompt
    is computed. step_s: a decode step with this request in the batch."""

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


def predict(snapshot: Snapshot, prefill: int | None, decode: int, demand: Demand) -> Prediction:
    """Of one worker each, by their places in the snapshot: for a hand-off from `prefill`, or with None for a local
    prefill on `decode`."""
    if is_native_built():
        return _predict_natively(snapshot, prefill, decode, demand)
    return predict_rows(
        None if prefill is None else snapshot.prefill.row(prefill), snapshot.decode.row(decode), demand
    )


def _predict_natively(snapshot: Snapshot, prefill: int | None, decode: int, demand: Demand) -> Prediction:
    givers, takers = snapshot.prefill, snapshot.decode
    terms = native.predict(
        givers.figures,
        givers.keys,
        -1 if prefill is None else prefill,
        takers.figures,
        takers.keys,
        decode,
        demand.prompt_tokens,
        demand.blocks,
        demand.choices,
    )
    return Prediction(*terms)


def predict_rows(prefill: Candidates | None, decode: Candidates, demand: Demand) -> Prediction:
    """The same of two rows: what native code is held against."""
    prompt_s = prefill_s(prefill or decode, demand)
    return Prediction(
        prefill_tokens=int(prefill_tokens(prefill or decode, demand)),
        queue_s=float(queue_s(decode) if prefill is None else turn_s(prefill, demand, prompt_s)),
        prefill_s=float(prompt_s),
        reserve_s=float(reserve_s(decode, demand)),
        handoff_s=0.0 if prefill is None else float(handoff_s(prefill, decode, demand, prompt_s)),
        step_s=float(step_s(decode, demand)),
    )


def queue_s(workers: Candidates) -> Column:
    """What the router knows of its own prompts, or what the worker reports: others' prompts, of lengths unknown."""
    return np.maximum(workers.queued_s, workers.queued_tokens / workers.profile.prefill_rate)


def turn_s(prefill: Candidates, demand: Demand, prompt_s: Column) -> Column:
    """Until the prompt's turn on a prefill worker, which takes short ones first: whoever goes ahead has less to
    compute than this one."""
    return np.minimum(queue_s(prefill), prefill.sequences * prompt_s)


def prefill_tokens(workers: Candidates, demand: Demand) -> Column:
    """The tokens that are not cached; the last one always is computed, for its logits."""
    return np.maximum(1.0, demand.prompt_tokens - workers.cached_tokens)


def prefill_s(workers: Candidates, demand: Demand) -> Column:
    uncached_tokens = prefill_tokens(workers, demand)
    return workers.profile.prefill_s(uncached_tokens, demand.prompt_tokens - uncached_tokens)


def reserve_s(decode: Candidates, demand: Demand) -> Column:
    """Each block that is lacking waits a step: about the rate at which a batch of a block's length returns them."""
    lacking_blocks = np.maximum(0.0, demand.blocks - decode.available_blocks)
    return lacking_blocks * decode.profile.step_s(decode.sequences, decode.context_tokens)


def place_s(decode: Candidates, demand: Demand) -> Column:
    """Until there is memory and a place in the batch. Each place that is lacking waits a step as well: about the
    rate at which they are returned by a batch whose answers have as many tokens as it has places."""
    lacking_places = np.maximum(0.0, decode.sequences + demand.choices - decode.max_running)
    returned_s = lacking_places * decode.profile.step_s(decode.sequences, decode.context_tokens)
    return np.maximum(returned_s, reserve_s(decode, demand))


def step_s(decode: Candidates, demand: Demand) -> Column:
    sequences = decode.sequences + demand.choices
    return decode.profile.step_s(sequences, decode.context_tokens + demand.prompt_tokens)


def handoff_s(prefill: Candidates, decode: Candidates, demand: Demand, prompt_s: Column) -> Column:
    """Blocks leave while the next ones are computed; of a link that keeps up only the last one is left over.
    The latency alone where the bandwidth or the size is unknown."""
    giver, taker = prefill.profile, decode.profile
    is_near = (prefill.host_key == decode.host_key) & (decode.host_key != 0)
    near_bytes_per_s = np.minimum(giver.same_host_bytes_per_s, taker.same_host_bytes_per_s)
    far_bytes_per_s = np.minimum(giver.copy_bytes_per_s, taker.copy_bytes_per_s)
    bandwidth = np.where(is_near, near_bytes_per_s, far_bytes_per_s)
    lacking_tokens = np.maximum(0.0, demand.prompt_tokens - decode.cached_tokens)
    transfer_s: Column = lacking_tokens * decode.kv_bytes_per_token / bandwidth
    left_over_s = np.maximum(transfer_s - prompt_s, transfer_s / max(1, demand.blocks))
    return np.where(is_near, giver.same_host_latency_s, giver.handoff_latency_s) + left_over_s
