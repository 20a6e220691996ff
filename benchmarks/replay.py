"""Sends planned requests at their times and collects what happened to each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from latency import Outcome

Send = Callable[[bytes], Awaitable[Outcome]]
CUT_OFF = "cut off at the time limit"


async def replay(
    bodies: Sequence[tuple[float, bytes]],
    send: Send,
    concurrency: int | None,
    limit_s: float | None,
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """The outcome of each of `bodies`, given as (seconds after the start, request body), in their order.

    concurrency: most requests under way at once; further ones wait unsent, and their clock starts with their
    sending. limit_s: what has not ended by then is cancelled and counted as failed.
    """
    start_s = time.perf_counter()
    gate = asyncio.Semaphore(concurrency) if concurrency is not None else None

    async def one(at_s: float, body: bytes) -> Outcome:
        await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
        async with AsyncExitStack() as stack:
            if gate is not None:
                await stack.enter_async_context(gate)
            outcome = await send(body)
        on_outcome(outcome)
        return outcome

    tasks = [asyncio.create_task(one(at_s, body)) for at_s, body in bodies]
    _, late = await asyncio.wait(tasks, timeout=limit_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return [Outcome(error=CUT_OFF) if task.cancelled() else task.result() for task in tasks]
