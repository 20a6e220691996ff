"""How tests connect to a registry, and wait for what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from baton.discovery.base import Registry
from baton.fleet import Fleet

Connect = Callable[[bytes], Registry]
"""A new client with this secret."""


async def until(watch: AsyncIterator[Fleet], condition: Callable[[Fleet], bool]) -> Fleet:
    async with asyncio.timeout(10):
        async for fleet in watch:
            if condition(fleet):
                return fleet
    raise AssertionError("the watch ended")


async def until_members(watch: AsyncIterator[Fleet], count: int) -> Fleet:
    return await until(watch, lambda fleet: len(fleet.members) == count)
