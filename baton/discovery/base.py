"""The registry contract. A worker joins under a lease and keeps it by heartbeats, a router watches, and of several
candidates for an office one at a time holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from baton.fleet import Fleet, WorkerInfo, WorkerLoad, WorkerState


class Registration(Protocol):
    """The worker's half. Calls have a deadline; they raise Unavailable when nobody answers, Unauthorized for a
    wrong secret or token."""

    async def register(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> float:
        """Joins the fleet; returns the lease in seconds. The same id with a new epoch replaces the old."""

    async def heartbeat(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> bool:
        """Renews the lease and announces what has changed of `worker`; False where the registry knows of no lease
        and the worker has to register again."""

    async def deregister(self, worker: WorkerInfo) -> None:
        """Leaves the fleet at once."""

    async def close(self) -> None: ...


class Membership(Protocol):
    """The router's half."""

    def watch(self) -> AsyncGenerator[Fleet, None]:
        """The fleet now, and again after each change of membership, state or load.

        Ends with Unavailable where the registry is elsewhere and cannot be asked, or has lost its memory;
        `baton.discovery.steady` goes on from there.
        """


class Offices(Protocol):
    """Leases on offices, as that of the one router whose planner acts; `baton.discovery.election` keeps one."""

    async def elect(self, office: str, candidate: str) -> float:
        """Asks for `office`, or keeps it. It is `candidate`'s alone for the returned seconds, counted from the
        moment of the call; 0 where it is not, or not yet."""

    async def resign(self, office: str, candidate: str) -> None:
        """Gives `office` up at once; harmless where `candidate` does not hold it."""


class Registry(Registration, Membership, Offices, Protocol):
    """A client's end of a registry that another process serves."""

    @classmethod
    def open(cls, address: RegistryAddress, secret: bytes, access: RegistryAccess) -> Self:
        """secret: shared by the whole fleet. Connects lazily. Raises ConfigError where address or
        access is not what this backend takes."""


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """scheme://host:port/path; path without its slashes."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """What a registry of somebody else's wants to see. token: of its own users. ca: file with the certificates that
    its own is checked against, the system's where None. certificate, key: files of what this process shows."""

    token: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
