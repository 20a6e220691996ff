"""A part of a request as one pair of workers gets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baton.lifecycle import Transition
from baton.request import GenerationRequest
from baton.router.decode_peer import DecodeLeg
from baton.router.part import Part
from baton.router.placement import Placement
from baton.router.prompt_hashes import PromptHashes
from baton.router.run import Run

_ANSWERS = (Transition.FIRST_TOKENS, Transition.DECODE_LOCALLY)


@dataclass(eq=False, slots=True)
class Attempt:
    """is_rival: of an attempt that is under way (`hedging`): nothing is told of its way until it is the first to
    answer. on_answer: called when it has the first tokens, before anybody hears of them. rival: of this one."""

    run: Run
    part: Part
    request: GenerationRequest
    hashes: PromptHashes
    placement: Placement
    is_rival: bool = False
    on_answer: Callable[[], None] | None = None
    rival: Attempt | None = None
    _leg: DecodeLeg | None = field(default=None, init=False)

    @property
    def suspects(self) -> frozenset[str]:
        """Whom the next attempt avoids once this one has failed: its workers, or those of a rival that was faster;
        a decode worker alone where it gave no memory, or where the sequence had moved to it."""
        if self.rival is not None and not self.rival.is_rival:
            return self.rival.suspects
        leg = self._leg if self.is_rival or self._leg is None else self.part.leg
        if leg is None:
            return self.placement.workers
        decode, has_moved = leg.worker.worker_id, leg is not self._leg
        return frozenset({decode}) if has_moved or leg.has_refused else self.placement.workers

    def decodes_at(self, leg: DecodeLeg) -> None:
        self._leg = leg
        if not self.is_rival:
            self.part.leg = leg

    def progress(self, transition: Transition, **attributes: str | int | float) -> None:
        """Tells how far the request has come."""
        if transition in _ANSWERS:
            self._answer()
        if not self.is_rival:
            self.run.progress(self.request, transition, **attributes)

    def _answer(self) -> None:
        if self.on_answer is not None:
            self.on_answer()
        if self.is_rival:
            self.is_rival = False
            self.part.leg = self._leg
            self.run.taken_over(self.placement)
