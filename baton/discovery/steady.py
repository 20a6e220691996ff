"""Following a registry that may go away: the last known members stay, serving goes on.

A registry that comes back may have forgotten everybody. So members that its first answers lack are kept until they
have had the time to join again, and only then are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from baton.discovery.base import Membership
from baton.errors import BatonError, Unauthorized, Unavailable
from baton.fleet import Fleet

REJOIN_S = 3.0
"""What a worker has to join a recovered registry: it tries four times a second, and none of its calls takes half
as long."""

_RETRY_S = 0.25
_log = logging.getLogger(__name__)


async def follow(registry: Membership, rejoin_s: float = REJOIN_S) -> AsyncGenerator[Fleet, None]:
    """The registry's fleets, through its outages; ends only by being closed. Raises Unauthorized where the very
    first answer is a refusal: asking again cannot help."""
    known: Fleet | None = None
    complaint = ""
    while True:
        try:
            async with aclosing(_recovering(registry, known or Fleet(), rejoin_s)) as fleets:
                async for fleet in fleets:
                    if complaint:
                        _log.warning("the registry answers again")
                    complaint, known = "", fleet
                    yield fleet
        except BatonError as error:
            if isinstance(error, Unauthorized) and known is None:
                raise
            if error.message != complaint:
                complaint = error.message
                _log.warning("registry: %s; the last known workers stay", error.message)
        await asyncio.sleep(_RETRY_S)


async def _recovering(registry: Membership, before: Fleet, rejoin_s: float) -> AsyncGenerator[Fleet, None]:
    """One watch, from its first answer on; for `rejoin_s` with those members of `before` that it lacks."""
    clock = asyncio.get_running_loop().time
    async with aclosing(registry.watch()) as watch:
        fleet = await _next(watch)
        ends_at_s = clock() + rejoin_s
        answer = asyncio.ensure_future(_next(watch))
        try:
            while before.members and (left_s := ends_at_s - clock()) > 0:
                yield _joined(fleet, before)
                await asyncio.wait([answer], timeout=left_s)
                if answer.done():
                    fleet = answer.result()
                    answer = asyncio.ensure_future(_next(watch))
            yield fleet
            yield await answer
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
        async for fleet in watch:
            yield fleet


async def _next(watch: AsyncGenerator[Fleet, None]) -> Fleet:
    try:
        return await anext(watch)
    except StopAsyncIteration:
        raise Unavailable("the registry has ended the watch") from None


def _joined(fleet: Fleet, before: Fleet) -> Fleet:
    present = {member.worker.worker_id for member in fleet.members}
    kept = (member for member in before.members if member.worker.worker_id not in present)
    return Fleet((*fleet.members, *kept))
