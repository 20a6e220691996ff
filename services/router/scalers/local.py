"""Orders for the supervisor of `baton up`, over its Unix socket: one line of JSON there, one back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from baton.errors import Unavailable
from baton.router.scalers.base import ScaleOrder, require_lead

_TIMEOUT_S = 5.0


class LocalScaler:
    """path: of the socket, in a folder that only this user may enter."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def order(self, order: ScaleOrder, leads: Callable[[], bool]) -> None:
        require_lead(leads)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = json.loads(await self._ask(json.dumps(order.body()).encode() + b"\n"))
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise Unavailable(f"the supervisor does not answer: {error!r}", field="scaler") from error
        match answer:
            case {"error": ""}:
                return
            case {"error": error}:
                raise Unavailable(f"the supervisor refuses: {error}", field="scaler")
            case _:
                raise Unavailable(f"the supervisor answers {answer!r:.200}", field="scaler")

    async def _ask(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            writer.write(line)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()
