"""Whether a worker can be reached where it says: found out when it joins, not when its first request hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from baton.errors import InvalidRequest
from baton.fleet import WorkerInfo

Preflight = Callable[[WorkerInfo], Awaitable[None]]

TIMEOUT_S = 2.0


async def believe(worker: WorkerInfo) -> None:
    """Takes every worker at its word."""


async def require_reachable(worker: WorkerInfo) -> None:
    """Raises InvalidRequest with the reason where nobody accepts a connection at its address in time."""
    host, _, port = worker.address.rpartition(":")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        raise _unreachable(worker, f"no answer within {TIMEOUT_S:g} s") from None
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(worker, str(error)) from error
    writer.close()


def _unreachable(worker: WorkerInfo, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"worker {worker.worker_id!r} announces the address {worker.address}, where it cannot be reached: "
        f"{reason}; is --advertise right?",
        field="address",
    )
