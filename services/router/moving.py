"""Moves a sequence that decodes to another worker, with its KV, while it goes on:

    place -> target reserves -> source pushes full blocks -> source stops -> target computes the rest

What the target lacks then is the few tokens since the blocks were counted. Until the source has stopped nothing is
lost by a failure: the sequence stays where it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from baton.errors import BatonError, Unavailable, WorkerFailed
from baton.router.decode_peer import DecodeLeg
from baton.router.lease import Lease
from baton.router.part import Part
from baton.router.placement import Placement
from baton.router.run import Run
from baton.router.workers import Workers

MOVE_TIMEOUT_S = 10.0
"""For memory at the target, and again for the blocks to arrive there."""

_AGAIN_S = 0.5
"""After a move that failed, or where there was nobody to move to."""

_log = logging.getLogger(__name__)


Find = Callable[[Run, str], Placement | None]
"""Another decode worker for a request than the one named, where there is one."""


@dataclass(slots=True)
class _Target:
    leg: DecodeLeg
    generated_tokens: int
    hold: AsyncExitStack = field(default_factory=AsyncExitStack)


class Mover:
    """Where one part decodes, from its first worker on. `leg` changes with each move."""

    def __init__(
        self, run: Run, part: Part, lease: Lease, leg: DecodeLeg, workers: Workers, find: Find
    ) -> None:
        self.leg = leg
        self._run = run
        self._part = part
        self._lease = lease
        self._workers = workers
        self._find = find
        self._hold = AsyncExitStack()
        self._move: asyncio.Task[_Target] | None = None
        self._not_before_s = 0.0

    @classmethod
    @asynccontextmanager
    async def at(
        cls, run: Run, part: Part, lease: Lease, leg: DecodeLeg, workers: Workers, find: Find
    ) -> AsyncIterator[Mover]:
        """lease: of the first worker. Leaving the context leaves whichever worker the part has come to."""
        mover = cls(run, part, lease, leg, workers, find)
        try:
            yield mover
        finally:
            await mover._give_up()
            await mover._hold.aclose()

    async def advance(self) -> None:
        """Begins, ends or gives up a move where it is time; returns at once unless the source has stopped. Raises
        what keeps the target from going on then: the part has to be resumed."""
        if self.leg.has_moved_on:
            await self._arrive()
        elif self._move is not None and self._move.done() and self._move.exception() is not None:
            where, why = self.leg.worker.worker_id, self._move.exception()
            _log.warning("%s stays at %s for now: %r", self._run.request.request_id, where, why)
            self._move, self._not_before_s = None, self._now_s() + _AGAIN_S
        elif self._move is None and self.leg.is_to_move and self._now_s() >= self._not_before_s:
            self._begin()

    def _begin(self) -> None:
        part, source = self._part, self.leg
        placement = self._find(self._run, source.worker.worker_id)
        if placement is None:
            self._not_before_s = self._now_s() + _AGAIN_S
            return
        if not part.is_single:
            raise Unavailable(f"{source.worker.worker_id} is leaving, and choices move one by one")
        target = self._workers.worker(placement.decode)
        tokens = part.movable_tokens(math.lcm(source.worker.block_size, target.block_size))
        if tokens:
            self._move = asyncio.create_task(self._prepare(source, placement, tokens))

    async def _prepare(self, source: DecodeLeg, placement: Placement, tokens: int) -> _Target:
        """Has the target take the KV of the first `tokens` tokens from the source, which stops then."""
        request = self._run.attempt(self._part, tokens)
        async with AsyncExitStack() as hold:
            lease = hold.enter_context(self._workers.lease(placement, request, self._run.hashes))
            lease.prefill_done()
            leg = await hold.enter_async_context(lease.decode.attach(request))
            async with asyncio.timeout(MOVE_TIMEOUT_S):
                grant = await leg.reserve(self._run.remaining_s(), is_local=False)
            await source.hand_over(tokens, grant.ticket, MOVE_TIMEOUT_S)
            return _Target(leg, request.generated_tokens, hold.pop_all())

    async def _arrive(self) -> None:
        move, self._move = self._move, None
        if move is None:  # the source had done it when its answer came too late
            raise WorkerFailed(f"{self.leg.worker.worker_id} gave up a sequence that nobody waits for")
        try:
            target = await move  # the end of its last call
        except BatonError as error:
            raise WorkerFailed(f"a sequence that moved has not arrived: {error.message}") from error
        source, self.leg = self.leg, target.leg
        before, self._hold = self._hold, target.hold
        await before.aclose()
        self._lease.moved_on()
        self._part.leg = target.leg
        async with self._run.deadline():
            await target.leg.start(self._part.tokens_from(target.generated_tokens))
        self._run.moved(source.worker.worker_id, target.leg.worker.worker_id, target.generated_tokens)

    async def _give_up(self) -> None:
        if self._move is None:
            return
        self._move.cancel()
        await asyncio.wait([self._move])
        if not self._move.cancelled() and self._move.exception() is None:
            await self._move.result().hold.aclose()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
