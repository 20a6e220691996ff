"""Several asynchronous sources read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """What all `sources` give, as it comes, until the last of them ends; the first failure of one ends all.

    Whoever makes the sources bounds what they give before it is taken.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as items:
            async for item in items:
                yield item
        return
    queue: asyncio.Queue[tuple[Item] | asyncio.Task[None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(source, queue)) for source in sources]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    try:
        running = len(tasks)
        while running:
            given = await queue.get()
            if isinstance(given, asyncio.Task):
                given.result()
                running -= 1
            else:
                yield given[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # the first failure has been raised above


async def _forward(
    source: AsyncGenerator[Item, None], queue: asyncio.Queue[tuple[Item] | asyncio.Task[None]]
) -> None:
    async with aclosing(source) as items:
        async for item in items:
            queue.put_nowait((item,))
