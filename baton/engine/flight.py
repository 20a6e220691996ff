"""A step that was launched and has not landed: what of it still counts, and what it keeps busy."""

from __future__ import annotations

from collections.abc import Sequence as Sequenced

from baton.engine.batch import Chunk
from baton.engine.sampler import Drawn
from baton.engine.sequence import Sequence
from baton.engine.step_work import StepWork
from baton.request import Token


class Flight:
    """From its launch on, its sequences have the tokens that it draws, but do not know them (`await_token`), and no
    other step takes up the tokens that it computes (`in_flight_tokens`). It lands, or is withdrawn.

    A sequence that is freed meanwhile is dropped: its token will not be told, and its blocks, which the device may
    still be writing to, stay taken until the step has landed.
    """

    def __init__(self, chunks: Sequenced[Chunk], drawn: Drawn) -> None:
        self.work = StepWork.of(chunks)
        self.chunks = list(chunks)
        self.drawn = drawn
        self.held_block_ids: list[int] = []
        self._samplers: list[Sequence | None] = [s for chunk in chunks for s in chunk.samplers]
        for chunk in chunks:
            chunk.sequence.in_flight_tokens += chunk.length
        for place, sampler in enumerate(self._samplers):
            assert sampler is not None, "nobody has been dropped yet"
            sampler.await_token(place)

    def drop(self, sequence: Sequence) -> bool:
        """Whether the step computes or draws for `sequence`; it is no longer meant."""
        is_here = sequence in self._samplers or any(chunk.sequence is sequence for chunk in self.chunks)
        self.chunks = [chunk for chunk in self.chunks if chunk.sequence is not sequence]
        self._samplers = [None if sampler is sequence else sampler for sampler in self._samplers]
        return is_here

    def tokens(self) -> list[tuple[Sequence, Token]]:
        """Waits for the device. Raises NonFiniteLogits."""
        return self.drawn.read(self._samplers)

    def withdraw(self) -> None:
        """Waits for the device and takes everything back; for the latest of several flights first."""
        self.drawn.wait()
        for chunk in self.chunks:
            chunk.sequence.in_flight_tokens -= chunk.length
        for sampler in self._samplers:
            if sampler is not None:
                sampler.forget_awaited()
