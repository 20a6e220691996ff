"""How hard the pools are pressed, from what their workers have done and what waits for them.

Pressure 1 is as much as a pool bears within the objectives. Of prefill, that is computing most of the time; asked
for is what was computed and by how much the queue grew. Of decode, it is batches whose steps take as long as the
TPOT objective allows, and that fit the KV; asked for is the rate of tokens, which does not depend on the number of
workers, and the sequences that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from baton.fleet import Role
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rules import PlannerRules

_PREFILL_BUSY = 0.85
"""Share of its time that a prefill pool may compute before its queues grow long."""
_STEP_OF_OBJECTIVE = 0.9
"""A mean step this long, relative to the objective, leaves most requests within it."""
_KV_HELD = 0.9
"""Share of its KV that a decode worker's sequences may fill; they grow."""
_DEFAULT_CONTEXT_TOKENS = 1024.0
"""Of a sequence, while there is none to look at."""
_CERTAIN = 4.0
"""Standard errors beyond which two means tell of a change of traffic; many ways to part a series are tried."""
_SEGMENT = 2
"""Values that a mean is taken of at least."""
_CHANGES = 5
"""From look to look, the newest, by which a rise that goes on is told."""
_RISE_ERRORS = 2.0
"""Standard errors that a rise is taken to be less, for it is counted on for many times as long as it was seen."""
_RISEN, _FALLEN = 2.0, 0.75
"""Of what is asked now, the most and the least that is foreseen. A fall slows down, since the sequences that are
left are the long ones: who counts on more takes workers from a pool that is full yet."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one worker bears in either role, within the objectives."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_sequences: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """error: one standard error. growth_per_s: of the value, where the series shows one. rise_per_s: as much of it
    as is certain to be going on."""

    value: float
    error: float = 0.0
    growth_per_s: float = 0.0
    rise_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What traffic asks of each pool as a whole."""

    prefill_tokens_per_s: Estimate
    decode_tokens_per_s: Estimate
    decode_sequences: Estimate

    def pressure(
        self, role: Role, pool: Iterable[Capacity], errors: float = 0.0, ahead_s: float = 0.0
    ) -> float:
        """On `pool` in `role`. errors: how many standard errors above the estimate; ahead_s: so much later,
        from `_FALLEN` to `_RISEN` times as much, and where errors are below 0 counting on nothing but a certain
        rise."""

        def asked(estimate: Estimate) -> float:
            growth_per_s = estimate.rise_per_s if errors < 0 else estimate.growth_per_s
            grown = estimate.value + ahead_s * growth_per_s
            later = min(_RISEN * estimate.value, max(_FALLEN * estimate.value, grown))
            return max(0.0, later + errors * estimate.error)

        workers = list(pool)
        if role is Role.PREFILL:
            return _ratio(
                asked(self.prefill_tokens_per_s), sum(worker.prefill_tokens_per_s for worker in workers)
            )
        return max(
            _ratio(asked(self.decode_tokens_per_s), sum(worker.decode_tokens_per_s for worker in workers)),
            _ratio(asked(self.decode_sequences), sum(worker.decode_sequences for worker in workers)),
        )


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One pool as the planner sees it. workers: ready or on their way into it. arriving: of these, on their way.
    attainment: share of its capacity where a request that comes now is predicted to meet its objective, `worst_s`
    being the longest prediction, of TTFT or of TPOT. waiting: prompt tokens, or sequences."""

    workers: int
    arriving: int
    pressure: float
    attainment: float
    worst_s: float
    waiting: int


def capacities(history: History, rules: PlannerRules) -> dict[str, Capacity]:
    """Of every worker, by its id."""
    observations = list(history.observations)
    context_tokens = _context_tokens(observations)
    return {worker.worker_id: _capacity(worker, context_tokens, rules) for worker in observations[-1].workers}


def demand(history: History) -> Demand:
    observations = list(history.observations)
    decode = [_decode_asked(observation) for observation in observations]
    at_s = [observation.at_s for observation in observations]
    sequences = _estimate(at_s, [asked[1] for asked in decode])
    # How many sequences there are varies as Poisson's law has it (an M/G/infinity queue), and for as long as they
    # last, so that several looks tell no more than one.
    sequences_error = max(sequences.error, math.sqrt(sequences.value))
    share = sequences_error / sequences.value if sequences.value else 0.0
    tokens = _estimate(at_s, [asked[0] for asked in decode])
    rise = _certain_rise_per_s(at_s, [asked[1] for asked in decode])
    rise_share = rise / sequences.value if sequences.value else 0.0
    return Demand(
        _estimate(at_s[1:], [_prefill_asked(*pair) for pair in pairwise(observations)]),
        _with_rise(tokens, max(tokens.error, share * tokens.value), rise_share * tokens.value),
        _with_rise(sequences, sequences_error, rise),
    )


def pool_load(
    role: Role,
    history: History,
    members: Sequence[WorkerStatus],
    pressure: float,
    rules: PlannerRules,
) -> PoolLoad:
    """members: ready in `role`, or on their way to it."""
    arriving = sum(history.is_under_way(worker.worker_id) for worker in members)
    there = [worker for worker in members if worker.role is role]
    predict_s = predicted_ttft_s if role is Role.PREFILL else predicted_tpot_s
    objective_s = rules.ttft_s if role is Role.PREFILL else rules.tpot_s
    predicted_s = [predict_s(worker) for worker in there]
    return PoolLoad(
        workers=len(members),
        arriving=arriving,
        pressure=pressure,
        attainment=sum(value_s <= objective_s for value_s in predicted_s) / max(1, len(there)),
        worst_s=max(predicted_s, default=0.0),
        waiting=sum(w.queued_tokens if role is Role.PREFILL else w.waiting for w in there),
    )


def predicted_ttft_s(worker: WorkerStatus) -> float:
    """Of a prompt without length that comes now: what is queued before it."""
    return worker.queued_tokens / worker.profile.prefill_rate


def predicted_tpot_s(worker: WorkerStatus) -> float:
    """Of a sequence without context that comes now."""
    return worker.profile.step_s(worker.running + 1, worker.held_tokens)


def _capacity(worker: WorkerStatus, context_tokens: float, rules: PlannerRules) -> Capacity:
    profile = worker.profile
    first_s = profile.step_s(1, 0)
    each_s = profile.step_s(2, 0) - first_s + context_tokens * profile.decode_s_per_context_token
    sequences = 1 + (_STEP_OF_OBJECTIVE * rules.tpot_s - first_s) / each_s if each_s else math.inf
    if worker.kv_tokens:
        sequences = min(sequences, _KV_HELD * worker.kv_tokens / context_tokens)
    if worker.max_running:
        sequences = min(sequences, worker.max_running)
    sequences = max(1.0, sequences)
    step_s = first_s + (sequences - 1) * each_s
    return Capacity(_PREFILL_BUSY * profile.prefill_rate, sequences / step_s, sequences)


def _context_tokens(observations: Sequence[Observation]) -> float:
    """Mean of the running sequences, for as long as there are about as many as now: those of one moment may be few,
    and long by chance."""
    start = _level_start([_decode_asked(observation)[1] for observation in observations])
    decode = [w for observation in observations[start:] for w in observation.workers if w.role is Role.DECODE]
    running = sum(worker.running for worker in decode)
    running_tokens = sum(worker.running_tokens for worker in decode)
    return max(1.0, running_tokens / running) if running and running_tokens else _DEFAULT_CONTEXT_TOKENS


def _prefill_asked(before: Observation, after: Observation) -> float:
    """Tokens/s: what was computed in between and by how much the queues grew, the workers' and the router's, which
    theirs are filled from. A queue that grows before workers with time on their hands waits for something else (for
    memory on the decode side), and counts as little."""
    elapsed_s = after.at_s - before.at_s
    earlier = {worker.worker_id: worker for worker in before.workers if worker.role is Role.PREFILL}
    now = [w for w in after.workers if w.role is Role.PREFILL and w.worker_id in earlier]
    tokens = all_busy_s = 0.0
    for worker in now:
        was = earlier[worker.worker_id]
        busy_s = min(elapsed_s, max(0.0, worker.busy_s - was.busy_s))
        grown_tokens = worker.queued_tokens - was.queued_tokens
        tokens += busy_s * worker.profile.prefill_rate + grown_tokens * busy_s / elapsed_s
        all_busy_s += busy_s
    if now:
        tokens += (after.waiting_tokens - before.waiting_tokens) * all_busy_s / (elapsed_s * len(now))
    return max(0.0, tokens / elapsed_s)


def _decode_asked(observation: Observation) -> tuple[float, float]:
    """Tokens/s, and sequences."""
    decode = [worker for worker in observation.workers if worker.role is Role.DECODE]
    tokens_per_s = sum(
        worker.running / worker.profile.step_s(worker.running, worker.held_tokens)
        for worker in decode
        if worker.running
    )
    return tokens_per_s, float(sum(worker.running + worker.waiting for worker in decode))


def _estimate(at_s: Sequence[float], values: Sequence[float]) -> Estimate:
    """The mean since the level last changed for certain."""
    if not values:
        return Estimate(0.0)
    start = _level_start(values)
    recent, earlier = values[start:], values[:start]
    mean = fmean(recent)
    variance = _squares(recent) / len(recent)
    if not earlier:
        return Estimate(mean, math.sqrt(variance / len(recent)))
    # A few values may be alike by chance: a level is no surer than the scatter on both of its sides has it.
    variance = max(variance, _common_variance(earlier, recent))
    between_s = fmean(at_s[start:]) - fmean(at_s[:start])
    return Estimate(mean, math.sqrt(variance / len(recent)), (mean - fmean(earlier)) / between_s)


def _level_start(values: Sequence[float]) -> int:
    """Where the level last changed for certain, 0 if nowhere: of all ways to part the values in earlier and recent
    ones, the one whose means differ most, in standard errors."""
    start, scatter = max(
        (_change(values, start) for start in range(_SEGMENT, len(values) - _SEGMENT + 1)),
        key=lambda change: change[1],
        default=(0, 0.0),
    )
    return start if scatter >= _CERTAIN else 0


def _with_rise(estimate: Estimate, error: float, rise_per_s: float) -> Estimate:
    growth_per_s = estimate.growth_per_s
    return Estimate(estimate.value, error, growth_per_s, max(0.0, min(growth_per_s, rise_per_s)))


def _certain_rise_per_s(at_s: Sequence[float], values: Sequence[float]) -> float:
    """By how much the value rises of late: the mean of its newest changes from look to look, less what may be
    chance. A leap that is over is no rise, for it makes one change unlike the others."""
    if len(values) <= _CHANGES:
        return 0.0
    changes = [after - before for before, after in pairwise(values[-_CHANGES - 1 :])]
    certain = fmean(changes) - _RISE_ERRORS * stdev(changes) / math.sqrt(_CHANGES)
    return certain * _CHANGES / (at_s[-1] - at_s[-_CHANGES - 1])


def _change(values: Sequence[float], start: int) -> tuple[int, float]:
    """How far, in standard errors, the mean of what begins at `start` is from that of what was before."""
    earlier, recent = values[:start], values[start:]
    error = math.sqrt(_common_variance(earlier, recent) * (1 / len(earlier) + 1 / len(recent)))
    difference = abs(fmean(recent) - fmean(earlier))
    return start, difference / error if error else math.inf if difference else 0.0


def _common_variance(earlier: Sequence[float], recent: Sequence[float]) -> float:
    """Of both, each about its own mean; three values at least."""
    return (_squares(earlier) + _squares(recent)) / (len(earlier) + len(recent) - 2)


def _squares(values: Sequence[float]) -> float:
    """The sum of the squared distances from the mean."""
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _ratio(asked: float, capacity: float) -> float:
    if capacity:
        return asked / capacity
    return math.inf if asked else 0.0
