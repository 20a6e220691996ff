"""The workers with the best predicted times, each from the worker's own measured profile.

Prompts: every prefill worker has a cost, its queue and the work, and work counts more than waiting, for what is
computed needlessly delays all who come after.

Tokens: the decode worker is the one with the least predicted time to a second token and a few more; for a session
its own, unless others cache more of the prompt, and only among those within the bound on their load. Workers where
a place would come too late, or whose streams would miss their TPOT objective with one more, are passed over. Where
that is all of them, everything would be late everywhere, so what comes now goes where streams are the latest
already: the rest of the fleet serves what it can in time. While only prompts that still queue for prefill
would make streams late, nobody is passed over.

Conditional disaggregation: a decode worker computes the prompt itself where that presses it less than a hand-off to
it would press the two workers, each measured by the objective that it serves: the time to the first token against
the TTFT objective, that of later ones against the TPOT objective, and the worse of both counts. A decode worker is
pressed for places in its batch as well: where they run out, all who come after wait for the time that decoding
loses. Both ways are compared on the same decode worker: that another one decodes less is no reason to compute
there. So idle prefill workers are not relieved at the expense of streams, and busy ones are while streams have
slack. Without a TPOT objective prompts are handed off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from baton.fleet import Role
from baton.router.affinity import favourite, scores, session_hash, within_bound
from baton.router.candidates import Candidates, Column
from baton.router.compiled import is_native_built, native
from baton.router.fleet_columns import LOCAL_MEMORY_S
from baton.router.policies.base import Choice, Policy, describe_load, least
from baton.router.prediction import handoff_s, place_s, prefill_s, queue_s, reserve_s, step_s, turn_s
from baton.router.snapshot import Demand, Disaggregation, Snapshot

_TOKENS_AHEAD = 32
"""Output tokens by which a prompt computed beside decoding is weighed; how long answers will be is not known."""

_SHORT_ANSWER_TOKENS = 8.0
"""Output tokens by which decode workers are compared for a hand-off. A hand-off spoils the mean time per token of
short answers only, and batches that differ spoil no answer as long as they keep to the objective."""

_WORK_WEIGHT = 16.0
"""How much more a second of computing counts than one of waiting. From 8 to 32 goodput hardly changes (by
simulation, `benchmarks/placement.py`)."""

_HARM = 0.03
"""How much a second of computing beside decoding counts for each stream that it holds up, where decode workers that
might compute a prompt are compared."""

_USUAL_TTFT_S = 2.0
"""The objective of requests that have none for the first token, but one for later ones."""

_TTFT_SHARE, _TPOT_SHARE, _PLACES_SHARE = 0.5, 0.8, 0.8
"""Of the objectives, and of the places in a batch, at which a pool counts as fully pressed: the rest is for what
cannot be foreseen, prompts that come at once, answers of other lengths and batches that grow."""

_MOST_SHARE = 0.95
"""Of a decode worker's time on local prefills, beyond which a step's length has no meaning."""

_MODES = (Disaggregation.AUTO, Disaggregation.ALWAYS, Disaggregation.NEVER)
"""As native code numbers them."""


class Predicted(Policy):
    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        prefill, decode = (_choose_natively if is_native_built() else choose_by_columns)(snapshot, demand)
        why_decode = f"decode: {describe_load(snapshot.decode, decode, Role.DECODE)}"
        if prefill is None:
            return Choice(None, decode, (why_decode,))
        why_prefill = f"prefill: {describe_load(snapshot.prefill, prefill, Role.PREFILL)}"
        return Choice(prefill, decode, (why_decode, why_prefill))


Pair = tuple[int | None, int]
"""The places of a prefill worker, or None, and of a decode worker."""


def _choose_natively(snapshot: Snapshot, demand: Demand) -> Pair:
    session, givers, takers = demand.session_key, snapshot.prefill, snapshot.decode
    mode = _MODES.index(demand.disaggregation)
    prefill, decode = native.choose_predicted(
        givers.figures,
        givers.keys,
        takers.figures,
        takers.keys,
        demand.prompt_tokens,
        demand.blocks,
        demand.choices,
        mode,
        demand.waited_s,
        _ttft_objective_s(demand),
        demand.tpot_s,
        None if session is None else session_hash(session),
        demand.ordinal,
    )
    return None if prefill < 0 else prefill, decode


def choose_by_columns(snapshot: Snapshot, demand: Demand) -> Pair:
    """The rule itself; native code takes the same steps, worker by worker."""
    prefill, decode = snapshot.prefill, snapshot.decode
    later_s = _TOKENS_AHEAD * step_s(decode, demand)
    if not len(prefill) or demand.disaggregation is Disaggregation.NEVER:
        return None, _least(decode, _local_cost(decode, demand) + later_s, demand)
    prompt_s = prefill_s(prefill, demand)
    prompt_cost = turn_s(prefill, demand, prompt_s) + _WORK_WEIGHT * prompt_s
    first = _least(prefill, prompt_cost, demand)
    second_s = handoff_s(prefill.row(first), decode, demand, prompt_s[first])
    short_s = _SHORT_ANSWER_TOKENS * step_s(decode, demand)
    decode_cost = place_s(decode, demand) + queue_s(decode) + second_s + short_s
    second = _decode(decode, decode_cost, demand)
    if demand.disaggregation is Disaggregation.AUTO and demand.tpot_s is not None:
        computed_s = np.maximum(prompt_s[first], reserve_s(decode, demand))
        first_token_s = turn_s(prefill, demand, prompt_s)[first] + computed_s
        handed_off = _pressure(demand, demand.tpot_s, first_token_s, _tpot_s(decode, demand, 0.0))
        is_better = _local_pressure(decode, demand, demand.tpot_s) < handed_off
        if is_better.any():
            local_cost = np.where(is_better, _local_cost(decode, demand) + later_s, np.inf)
            return None, _least(decode, local_cost, demand)
    return first, second


def _local_cost(decode: Candidates, demand: Demand) -> Column:
    prompt_s = prefill_s(decode, demand)
    waiting_s = np.maximum(0.0, reserve_s(decode, demand) - prompt_s)
    return queue_s(decode) + waiting_s + (_WORK_WEIGHT + _HARM * decode.sequences) * prompt_s


def _local_pressure(decode: Candidates, demand: Demand, objective_s: float) -> Column:
    """(n,), inf where streams would not keep within their objective or the batch within its places, and where a
    place or memory is lacking already: there decoding is what prompts wait for, and computing one would make it
    slower."""
    prompt_s = prefill_s(decode, demand)
    tpot_s, fullness = _tpot_s(decode, demand, prompt_s), _fullness(decode, prompt_s)
    pressure = np.maximum(_pressure(demand, objective_s, queue_s(decode) + prompt_s, tpot_s), fullness)
    is_free = (tpot_s <= _TPOT_SHARE * objective_s) & (fullness <= 1) & (place_s(decode, demand) == 0)
    return np.where(is_free, pressure, np.inf)


def _pressure(demand: Demand, tpot_objective_s: float, first_token_s: Column, tpot_s: Column) -> Column:
    """1 is as much as the objectives allow. first_token_s: from now on. Who has waited for longer than the
    objective misses it either way: then it counts only which pool is the more pressed."""
    ttft_objective_s = _ttft_objective_s(demand)
    waited_s = demand.waited_s if demand.waited_s < ttft_objective_s else 0.0
    return np.maximum(
        (waited_s + first_token_s) / (_TTFT_SHARE * ttft_objective_s),
        tpot_s / (_TPOT_SHARE * tpot_objective_s),
    )


def _ttft_objective_s(demand: Demand) -> float:
    return _USUAL_TTFT_S if demand.ttft_s is None else demand.ttft_s


def _tpot_s(decode: Candidates, demand: Demand, prompt_s: Column | float) -> Column:
    """(n,), what a token of the streams will take, the request's own among them, where this worker is to compute so
    much of prompts more: its time is shared between steps and the prompts that it was given of late, and batches
    grow as their steps do. At least what the queued prompts do to a short answer."""
    slower = _slower(decode, prompt_s)
    grown, context_tokens = slower * decode.sequences, slower * decode.context_tokens
    long_s = slower * decode.profile.step_s(grown + demand.choices, context_tokens + demand.prompt_tokens)
    short_s = step_s(decode, demand) + (queue_s(decode) + prompt_s) / _TOKENS_AHEAD
    return np.maximum(long_s, short_s)


def _fullness(decode: Candidates, prompt_s: Column) -> Column:
    """(n,), how pressed the places of each batch are, 1 fully, where this worker is to compute so much of prompts
    more: sequences that take longer hold theirs for longer."""
    places = _PLACES_SHARE * np.maximum(1.0, decode.max_running)
    return _slower(decode, prompt_s) * decode.sequences / places


def _slower(decode: Candidates, prompt_s: Column | float) -> Column:
    """(n,), how many times as long everything takes beside that much of prompts more."""
    share = (decode.local_prefill_s + prompt_s) / LOCAL_MEMORY_S
    slower: Column = 1 / (1 - np.minimum(share, _MOST_SHARE))
    return slower


def _decode(decode: Candidates, cost: Column, demand: Demand) -> int:
    open_cost = np.where(_open(decode, demand), cost, np.inf)
    is_near = (open_cost < np.inf) & within_bound(decode.sequences)
    if demand.session_key is None or not is_near.any():
        return _least(decode, open_cost, demand)
    own = favourite(demand.session_key, decode.keys, is_near)
    knows_more = is_near & (decode.cached_tokens > decode.cached_tokens[own])
    if not knows_more.any():
        return own
    return _least(decode, np.where(knows_more, cost, np.inf), demand)


def _open(decode: Candidates, demand: Demand) -> npt.NDArray[np.bool_]:
    """(n,), the workers where this request gets a place in time and whose streams keep within their objective with
    it among them. Where that is none, only the one that is furthest beyond: what is lost is lost there, and the
    others' streams are spared. All of them for an objective that a stream alone would miss, and where only prompts
    that still queue would make anybody late: which streams they will meet is not known yet."""
    everyone = np.ones(len(decode), np.bool_)
    if demand.tpot_s is None:
        return everyone
    strain = _strain(decode, demand, demand.tpot_s)
    keeps = strain <= 1
    if keeps.any():
        return keeps
    alone_s = np.min(decode.profile.step_s(demand.choices, demand.prompt_tokens))
    present = _strain(decode.without_queued(), demand, demand.tpot_s)
    if alone_s > demand.tpot_s or np.all(present <= 1):
        return everyone
    furthest: npt.NDArray[np.bool_] = strain == strain.max()
    return furthest


def _strain(decode: Candidates, demand: Demand, objective_s: float) -> Column:
    """(n,), how far each is beyond the objectives with this request: 1 is as much as they allow."""
    wait = place_s(decode, demand) / (_TTFT_SHARE * _ttft_objective_s(demand))
    return np.maximum(wait, _tpot_s(decode, demand, 0.0) / objective_s)


def _least(workers: Candidates, cost: Column, demand: Demand) -> int:
    """Among equals a session has a worker of its own, the same at every router; others take turns: were it always
    the first of them, its cache alone would be overwritten again and again while those of idle workers stay empty.
    """
    equals = least(cost)
    if len(equals) == 1 or demand.session_key is None:
        return int(equals[demand.ordinal % len(equals)])
    return int(equals[scores(session_hash(demand.session_key), workers.keys[equals]).argmax()])
