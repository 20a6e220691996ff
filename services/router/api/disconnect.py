"""Ends work for a client that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def run_until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work` and cancels it as soon as the client closes the connection.

    Returns whether the client was there to the end. Either way `work` has released what it held. The body must
    have been read, so that `receive` has nothing but the disconnect left to tell.
    """
    worker = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((worker, watch), return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.cancel()
        watch.cancel()
        await asyncio.wait((worker, watch))
    if worker.cancelled():
        return False
    worker.result()
    return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
