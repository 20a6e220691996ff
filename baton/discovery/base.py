"""The registry contract. A worker joins under a lease and keeps it by heartbeats; a router watches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from baton.fleet import Fleet, WorkerInfo, WorkerLoad, WorkerState


class Registration(Protocol):
    """The worker's half. Calls have a deadline and raise Unavailable when nobody answers."""

    async def register(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> float:
        """Joins the fleet; returns the lease in seconds. The same id with a new epoch replaces the old."""

    async def heartbeat(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> bool:
        """Renews the lease; False where it has ended and the worker has to register again."""

    async def deregister(self, worker: WorkerInfo) -> None:
        """Leaves the fleet at once."""

    async def close(self) -> None: ...


class Membership(Protocol):
    """The router's half."""

    def watch(self) -> AsyncIterator[Fleet]:
        """The fleet now, and again after each change of membership, state or load."""
