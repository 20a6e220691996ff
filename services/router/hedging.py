"""A second attempt at a first token, on another pair of workers, where the first one takes long. Whoever answers
first serves the request; the other is left, like any request whose client has gone.

(Dean and Barroso, "The Tail at Scale", 2013: hedged requests, one in twenty of all on average.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from functools import partial

from baton.errors import BatonError
from baton.request import TokenOutput
from baton.router.attempt import Attempt
from baton.router.placement import Placement, PrefillSite

HEDGED_SHARE = 0.05
"""Of all requests, on average."""

MOST_HEDGES = 16
"""In a row: so many are there at the start, and after many requests that needed none."""

Begin = Callable[[Attempt], tuple[AsyncGenerator[TokenOutput, None], ExitStack]]
"""Takes what an attempt holds, at once, and gives it with the attempt's tokens."""


def may_race(placement: Placement, first: Placement) -> bool:
    """Whether another worker would compute the prompt, and not for lack of a prefill worker beside the first."""
    is_makeshift = placement.site is PrefillSite.LOCAL_ALONE and first.site is not PrefillSite.LOCAL_ALONE
    return placement.prompt_worker != first.prompt_worker and not is_makeshift


class Race:
    """Attempts at the same first token, each in a task of its own."""

    def __init__(self, begin: Begin, rival_of: Callable[[Attempt], Attempt | None]) -> None:
        """rival_of: another attempt to make beside this one, where there is to be one."""
        self._begin = begin
        self._rival_of = rival_of
        self._news: asyncio.Queue[TokenOutput | asyncio.Task[None]] = asyncio.Queue()
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def outputs(self, first: Attempt, hedge_after_s: float) -> AsyncGenerator[TokenOutput, None]:
        """Of the attempt that answers first. One that fails before leaves the race to the other; the last
        failure is raised."""
        timer = asyncio.get_running_loop().call_later(hedge_after_s, self._hedge, first)
        self._enter(first, timer)
        try:
            while self._running:
                news = await self._news.get()
                if not isinstance(news, asyncio.Task):
                    yield news
                elif news in self._running:
                    self._running.discard(news)
                    if not self._running or not isinstance(failure := news.exception(), BatonError):
                        news.result()
                        return
                    fallen = self._attempts[news]
                    fallen.run.fell_out(fallen.placement, failure)
        finally:
            timer.cancel()
            for task in self._attempts:
                task.cancel()
            await asyncio.gather(*self._attempts, return_exceptions=True)

    def _hedge(self, first: Attempt) -> None:
        rival = self._rival_of(first)
        if rival is not None:
            self._enter(rival, None)

    def _enter(self, attempt: Attempt, timer: asyncio.TimerHandle | None) -> None:
        outputs, hold = self._begin(attempt)
        task = asyncio.create_task(self._forward(outputs))
        attempt.on_answer = partial(self._won_by, task, timer)
        task.add_done_callback(lambda _: hold.close())
        task.add_done_callback(self._news.put_nowait)
        self._attempts[task] = attempt
        self._running.add(task)

    def _won_by(self, winner: asyncio.Task[None], timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        for outrun in self._running - {winner}:
            self._running.discard(outrun)
            outrun.cancel()

    async def _forward(self, outputs: AsyncGenerator[TokenOutput, None]) -> None:
        async with aclosing(outputs):
            async for output in outputs:
                self._news.put_nowait(output)
