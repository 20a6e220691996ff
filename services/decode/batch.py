"""The sequences that are computed each step, and those that wait to be computed from their tokens."""

from __future__ import annotations

from bisect import insort

from baton.decode.work import Work
from baton.engine.batch import Chunk
from baton.engine.block_manager import OutOfBlocks
from baton.engine.engine import Engine
from baton.engine.logit_edits import depends_on_tokens
from baton.engine.sequence import Sequence
from baton.engine.step_room import ChunkLimit

_ROOM_PER_STEP = 1 / 64
"""Sequences that the batch may have more after each step, once one has not fitted into memory."""


class Batch:
    """Running sequences hold their blocks; waiting ones (preempted, prompts to compute here, choices without
    room for a fork) hold none and come back oldest first, before any newcomer."""

    def __init__(self, engine: Engine, max_running: int, prefill: ChunkLimit) -> None:
        """prefill: of the prompts in a step."""
        self.preemptions = 0
        self._engine = engine
        self._max_running = max_running
        self._room = float(max_running)
        self._prefill = prefill
        self._running: dict[Sequence, Work] = {}
        self._waiting: list[tuple[Sequence, Work]] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        return sum(sequence.pending_tokens for sequence, _ in self._waiting)

    def running_requests(self) -> int:
        return len({sequence.request_id for sequence in self._running})

    def holds(self, sequence: Sequence) -> bool:
        return sequence in self._running or any(sequence is waiting for waiting, _ in self._waiting)

    def run(self, sequence: Sequence, work: Work) -> None:
        """`sequence` holds the blocks of all its tokens but the last."""
        self._running[sequence] = work

    def wait(self, sequence: Sequence, work: Work) -> None:
        """`sequence` holds no blocks."""
        insort(self._waiting, (sequence, work), key=_age)

    def fork(self, work: Work, children: list[Sequence]) -> None:
        """Other choices of `work` run from its prompt's blocks; those without room for a fork wait."""
        for child in children:
            try:
                self._engine.fork(work.primary, child)
            except OutOfBlocks:
                self.wait(child, work)
            else:
                self.run(child, work)

    def leave(self, sequence: Sequence) -> None:
        """Nothing happens where it is not here."""
        if self._running.pop(sequence, None) is None:
            self._waiting = [(waiting, work) for waiting, work in self._waiting if waiting is not sequence]

    def needs_landed(self) -> bool:
        """Whether the step in flight has to land before the next can be planned: blocks that it keeps busy may be
        needed, or a token is chosen by looking at those before it."""
        lacking_blocks = sum(map(self._lacks_block, self._running))
        return lacking_blocks > self._engine.blocks.available or any(
            depends_on_tokens(sequence.sampling) for sequence in self._running
        )

    def plan(self) -> list[Chunk]:
        """What the next step computes: one token of each running sequence, and of prompts as much as
        there is room for."""
        self._room = min(self._room + _ROOM_PER_STEP, self._max_running)
        self._readmit()
        self._make_room()
        room = self._prefill.room()
        chunks: list[Chunk] = []
        for sequence, work in self._running.items():
            pending = length = sequence.pending_tokens
            if pending > 1:
                length = room.fits(pending, sequence.computed_tokens)
                room.take(length, sequence.computed_tokens)
            if length > 0 and not self._is_full(sequence):
                chunks.append(Chunk(sequence, length, _samplers(sequence, work) if length == pending else ()))
        return chunks

    def halve(self) -> bool:
        """After a step that did not fit into memory: preempts the younger half, which comes back little by little.
        False where the batch is one sequence, and less is not possible."""
        if len(self._running) < 2:
            return False
        kept = len(self._running) // 2
        for entry in sorted(self._running.items(), key=_age)[kept:]:
            self._preempt(*entry)
        self._room = kept
        return True

    def _readmit(self) -> None:
        """Moves waiting sequences to the running ones while they fit and leave each of those a block."""
        while self._waiting and len(self._running) < int(self._room):
            sequence, work = self._waiting[0]
            tokens = len(sequence.token_ids)
            self._engine.take_cached_prefix(sequence, tokens - 1)
            lacking_blocks = self._engine.blocks_for(tokens) - len(sequence.block_ids)
            if lacking_blocks + len(self._running) > self._engine.blocks.available:
                self._engine.free(sequence)
                return
            self._engine.grow(sequence, tokens)
            del self._waiting[0]
            self._running[sequence] = work

    def _make_room(self) -> None:
        """Gives each running sequence the block for its next token, preempting the youngest where none is
        left; the oldest always gets on."""
        for sequence in list(self._running):
            while sequence in self._running and self._lacks_block(sequence):
                try:
                    self._engine.grow(sequence, len(sequence.token_ids))
                except OutOfBlocks:
                    self._preempt(*max(self._running.items(), key=_age))

    def _lacks_block(self, sequence: Sequence) -> bool:
        has_room = len(sequence.block_ids) * self._engine.block_size >= len(sequence.token_ids)
        return not has_room and not self._is_full(sequence)

    def _is_full(self, sequence: Sequence) -> bool:
        """Whether it only waits for its last token, which the step in flight draws."""
        return sequence.is_full(self._engine.max_model_tokens)

    def _preempt(self, sequence: Sequence, work: Work) -> None:
        self._engine.free(sequence)
        del self._running[sequence]
        self.wait(sequence, work)
        self.preemptions += 1


def _samplers(sequence: Sequence, work: Work) -> tuple[Sequence, ...]:
    """A prompt's last row serves all choices; any other row its own sequence."""
    return tuple(work.choices) if sequence.output_tokens == 0 else (sequence,)


def _age(entry: tuple[Sequence, Work]) -> tuple[float, int]:
    """Smaller is older."""
    sequence, work = entry
    return work.arrived_at_s, sequence.choice
