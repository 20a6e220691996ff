"""Which prompts a step computes, and how many tokens of each. Pure: no clock, no memory, no I/O.

Stations of a prompt: waiting -> admitted (holds every block that it will need) -> computed, and removed.

A step's room (`step_room`: tokens and time) is given out by these rules:

1. The eldest prompt, once eight steps have left it out, gets at least an eighth of each. So every prompt goes on
   when its elders have ended, whatever comes.
2. The rest goes by priority, and among equals to what lacks the fewest tokens (shortest remaining first: Schrage,
   "A Proof of the Optimality of the Shortest Remaining Processing Time Discipline", 1968): a short prompt gets into
   the next step, however long the one that is being computed.
3. A step in which a prompt ends carries, but for rule 1, only what ends in it: first tokens come with a step's end,
   and need not wait for tokens that would do so later.

Who is admitted holds all its blocks, so no two half-computed prompts ever wait for each other's memory. Where the
eldest then finds no memory, others may be admitted before it until they have as many tokens as it has, four times
over; after that nobody is, until what they hold has come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from baton.engine.step_room import ChunkLimit, StepRoom

PATIENCE_STEPS = 8
"""Steps that may leave the eldest out."""

ELDEST_SHARE = 8
"""From then on it gets one part in this many of each step."""

PASSING_TOKENS = 4
"""Tokens that may be admitted past an eldest without memory, in multiples of its own."""


class Queued(Protocol):
    """A prompt, compared by identity. queued_at_s: when it came, here or to the worker that had it before, on any
    clock. remaining_tokens: not computed yet, at least 1; before it is admitted, a guess. computed_tokens: whose KV
    is there."""

    @property
    def queued_at_s(self) -> float: ...

    @property
    def priority(self) -> int: ...

    @property
    def remaining_tokens(self) -> int: ...

    @property
    def computed_tokens(self) -> int: ...


P = TypeVar("P", bound=Queued)


class PromptQueue(Generic[P]):
    """The prompts of one worker that are not computed yet, in order of arrival. limit: of a step."""

    def __init__(self, limit: ChunkLimit) -> None:
        self._limit = limit
        self._is_admitted: dict[P, bool] = {}
        self._left_out_steps = 0
        self._passed_tokens = 0

    def __contains__(self, prompt: P) -> bool:
        return prompt in self._is_admitted

    def __iter__(self) -> Iterator[P]:
        """In order of arrival."""
        return iter(self._is_admitted)

    @property
    def waiting(self) -> int:
        return len(self._is_admitted) - len(self.admitted)

    @property
    def admitted(self) -> list[P]:
        """In order of arrival."""
        return [prompt for prompt, is_admitted in self._is_admitted.items() if is_admitted]

    def add(self, prompt: P) -> None:
        """Behind all that came before it; one that comes back from elsewhere, before whom it was before."""
        later = takewhile(lambda one: one.queued_at_s > prompt.queued_at_s, reversed(self._is_admitted))
        overtaken = list(later)
        if overtaken and overtaken[-1] is self._eldest:
            self._left_out_steps = self._passed_tokens = 0
        self._is_admitted[prompt] = False
        for one in reversed(overtaken):
            self._is_admitted[one] = self._is_admitted.pop(one)

    def remove(self, prompt: P) -> None:
        """It is computed, or nobody wants it any more; one that is not here is left alone."""
        if self._is_admitted and prompt is self._eldest:
            self._left_out_steps = self._passed_tokens = 0
        self._is_admitted.pop(prompt, None)

    def plan(self, admit: Callable[[P], bool]) -> list[tuple[P, int]]:
        """The chunks of the next step, together within the limit. `admit` takes all blocks of a prompt that
        waits, or leaves it as it was and returns False; it may change what remains, by what is cached."""
        if not self._is_admitted:
            return []
        step, eldest, is_full = _Step[P](self._limit.room()), self._eldest, False
        if self._left_out_steps >= PATIENCE_STEPS:
            if self._has_blocks(eldest, admit):
                step.give(eldest, ELDEST_SHARE)
            else:
                is_full = self._passed_tokens >= PASSING_TOKENS * eldest.remaining_tokens
        for prompt in sorted(self._is_admitted, key=lambda one: (one.priority, one.remaining_tokens)):
            if not step.takes(prompt):
                break
            is_full = is_full or not self._has_blocks(prompt, admit)
            if self._is_admitted[prompt] and step.takes(prompt):
                step.give(prompt)
        self._left_out_steps += eldest not in step.chunks
        return list(step.chunks.items())

    @property
    def _eldest(self) -> P:
        return next(iter(self._is_admitted))

    def _has_blocks(self, prompt: P, admit: Callable[[P], bool]) -> bool:
        if self._is_admitted[prompt]:
            return True
        asked_tokens = prompt.remaining_tokens
        is_admitted = self._is_admitted[prompt] = admit(prompt)
        if is_admitted and prompt is not self._eldest and not self._is_admitted[self._eldest]:
            self._passed_tokens += asked_tokens
        return is_admitted


class _Step(Generic[P]):
    """One step's room, while it is given out."""

    def __init__(self, room: StepRoom) -> None:
        self.chunks: dict[P, int] = {}
        self._room = room
        self._has_ending = False

    def takes(self, prompt: P) -> bool:
        """Whether the next in line is given anything, by rule 3."""
        lacking_tokens = self._lacking_tokens(prompt)
        fitting_tokens = self._room.fits(lacking_tokens, self._seen_tokens(prompt))
        return fitting_tokens == lacking_tokens or (fitting_tokens > 0 and not self._has_ending)

    def give(self, prompt: P, divisor: int = 1) -> None:
        """What there is room for, in a part of the room where there is a `divisor`."""
        lacking_tokens, seen_tokens = self._lacking_tokens(prompt), self._seen_tokens(prompt)
        room = self._room if divisor == 1 else self._room.part(divisor)
        length = room.fits(lacking_tokens, seen_tokens)
        if length:
            self.chunks[prompt] = self.chunks.get(prompt, 0) + length
            self._room.take(length, seen_tokens)
            self._has_ending |= length == lacking_tokens

    def _lacking_tokens(self, prompt: P) -> int:
        return prompt.remaining_tokens - self.chunks.get(prompt, 0)

    def _seen_tokens(self, prompt: P) -> int:
        return prompt.computed_tokens + self.chunks.get(prompt, 0)
