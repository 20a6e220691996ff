"""A worker's profile, corrected all the while by what its steps and hand-offs really take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baton.engine.step_room import ChunkLimit
from baton.engine.step_work import StepWork
from baton.fleet import WorkerProfile
from baton.kvtransfer.schemes import SAME_HOST_SCHEMES
from baton.worker.term_fit import TermFit

TYPICAL_PROMPT_TOKENS = 256
_TYPICAL_SEQUENCES = 4
_TYPICAL_CONTEXT_TOKENS = 1024
_TYPICAL_TAIL_BYTES = 1 << 20

_STEPS_MEMORY_S = 20.0
_TAILS_MEMORY_S = 0.5
"""Busy time, and time that tails of hand-offs took, after which what was seen counts 1/e."""

_TYPICAL = (
    *(1, TYPICAL_PROMPT_TOKENS, TYPICAL_PROMPT_TOKENS**2 / 2),
    *(1, _TYPICAL_SEQUENCES - 1, _TYPICAL_CONTEXT_TOKENS),
)
"""Amounts of each of a step's terms."""

_LATENCY_PRIOR_S = 0.001
_COPY_PRIOR_BYTES_PER_S = 1e9
_NOTHING_S = 1e-12
"""Stands for a term that was found to be 0: 0 itself means unknown."""

_SHAPES = ((32, 0), (256, 0), (1024, 1024))
_BATCHES = ((1, 128), (8, 1024), (32, 16384))
_NEWS_SHARE = 0.05
"""Change of a predicted time from which on the corrected profile is published; spreads, by which no router goes,
ride with it: each new profile has every router make its columns anew."""


class LiveProfile:
    """`note_*` on the engine's thread, `published` on any one thread.

    Fitted apart: steps, and for each KV scheme the tails of hand-offs. A step of decode is made anyway: prompts
    beside it add what they compute, and not what a pass takes.
    """

    def __init__(self, measured: WorkerProfile, limit: ChunkLimit | None = None) -> None:
        """measured: at start. limit: of this worker's passes over prompts, published with its speeds."""
        self._limit = limit
        self._measured = measured
        self._published = self._limited(measured)
        one_s, two_s = measured.step_s(1, 0), measured.step_s(2, 0)
        prompts_s = (measured.prefill_pass_s, 1 / measured.prefill_rate, measured.prefill_s_per_pair)
        self._steps = TermFit(
            (*prompts_s, one_s, two_s - one_s, measured.decode_s_per_context_token), _TYPICAL, _STEPS_MEMORY_S
        )
        self._tails: dict[str, TermFit] = {}
        self._links: dict[bool, TermFit] = {}

    def note_step(self, work: StepWork, seconds: float) -> None:
        """seconds: from the end of the step before, or from the moment that there was work, to this one's end."""
        if not work.prompt_tokens and not work.sequences:
            return  # a step that only launched what the next one lands
        decodes = work.sequences > 0
        prompts = (not decodes, work.prompt_tokens, work.prompt_pairs)
        self._steps.note((*prompts, decodes, max(0, work.sequences - 1), work.context_tokens), seconds)

    def note_tail(self, scheme: str, tail_bytes: float, seconds: float) -> None:
        """What was left of a hand-off when its prompt was computed: `tail_bytes`, acknowledged `seconds` after they
        had been given to the transport."""
        if scheme not in self._tails:
            self._tails[scheme] = TermFit(self._unseen_link(), (1, _TYPICAL_TAIL_BYTES), _TAILS_MEMORY_S)
        self._tails[scheme].note((1, tail_bytes), seconds)
        self._links[scheme in SAME_HOST_SCHEMES] = self._tails[scheme]

    def corrected(self) -> WorkerProfile:
        """Hand-offs by the scheme of the last one, of those within the host and of those beyond it."""
        pass_s, token_s, pair_s, step_s, sequence_s, context_s = self._steps.terms
        profile = replace(
            self._measured,
            prefill_pass_s=pass_s,
            prefill_tokens_per_s=1 / token_s if token_s else self._measured.prefill_rate,
            prefill_s_per_pair=pair_s,
            decode_step_s=max(step_s, _NOTHING_S),
            decode_s_per_sequence=max(sequence_s, _NOTHING_S),
            decode_s_per_context_token=context_s,
            step_spread=self._steps.spread or self._measured.step_spread,
        )
        near, far = self._links.get(True), self._links.get(False)
        if near is not None:
            latency_s, bytes_per_s = self._link(near.terms)
            profile = replace(profile, same_host_latency_s=latency_s, same_host_bytes_per_s=bytes_per_s)
        if link := near or far:
            latency_s, bytes_per_s = self._link(far.terms if far else self._unseen_link())
            profile = replace(
                profile,
                handoff_latency_s=latency_s,
                copy_bytes_per_s=bytes_per_s,
                handoff_spread=link.spread,
            )
        return profile

    def _unseen_link(self) -> tuple[float, float]:
        """Terms of one that nothing was handed off by: no better than the known one within the host."""
        latency_s, byte_s = self._links[True].terms if True in self._links else (0.0, 0.0)
        prior_byte_s = 1 / (self._measured.copy_bytes_per_s or _COPY_PRIOR_BYTES_PER_S)
        return max(latency_s, _LATENCY_PRIOR_S), max(byte_s, prior_byte_s)

    def _link(self, terms: Sequence[float]) -> tuple[float, float]:
        """Latency in seconds, and bytes/s."""
        latency_s, byte_s = terms
        return latency_s, 1 / byte_s if byte_s else self._measured.copy_bytes_per_s

    def _limited(self, profile: WorkerProfile) -> WorkerProfile:
        return profile if self._limit is None else self._limit.told_with(profile)

    def published(self) -> WorkerProfile:
        """The corrected profile, the same one until some prediction from it would be another."""
        corrected = self._limited(self.corrected())
        if corrected != self._published and _is_news(self._published, corrected):
            self._published = corrected
        return self._published


def _is_news(old: WorkerProfile, new: WorkerProfile) -> bool:
    times_s = zip(_times_s(old), _times_s(new), strict=True)
    return any(abs(now_s - then_s) > _NEWS_SHARE * then_s for then_s, now_s in times_s)


def _times_s(profile: WorkerProfile) -> list[float]:
    prompts_s = (profile.prefill_s(*shape) for shape in _SHAPES)
    steps_s = (profile.step_s(*batch) for batch in _BATCHES)
    handoffs_s = (profile.handoff_s(_TYPICAL_TAIL_BYTES, is_same_host) for is_same_host in (False, True))
    return [*prompts_s, *steps_s, *handoffs_s]
