"""Workers and routers as they meet on a real Consul, under short leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from announced_worker import SECRET
from consul_agent import ConsulAgent

from baton.discovery.base import Registry, RegistryAccess, RegistryAddress
from baton.discovery.consul import ConsulRegistry
from baton.discovery.consul_api import ConsulApi
from baton.discovery.steady import follow
from baton.fleet import Fleet, WorkerInfo, WorkerLoad
from baton.worker.membership import Membership

LEASE_S = 1.0
REJOIN_S = 1.5
CONVERGENCE_S = 5.0


def registry(agent: ConsulAgent, prefix: str = "fleet", secret: bytes = SECRET, token: str = "") -> Registry:
    host, _, port = agent.address.partition(":")
    api = ConsulApi(RegistryAddress("consul", host, int(port), prefix), RegistryAccess(token))
    return ConsulRegistry(api, prefix, secret, LEASE_S)


@asynccontextmanager
async def joined(agent: ConsulAgent, worker: WorkerInfo) -> AsyncIterator[Membership]:
    """A worker as it keeps its membership; on leaving the context it dies without a word."""
    client = registry(agent)
    membership = Membership(
        client, worker, WorkerLoad, lambda: worker.profile, heartbeat_s=0.25, on_registered=lambda: None
    )
    keeper = asyncio.create_task(membership.keep())
    try:
        yield membership
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
        await client.close()


class Follower:
    """A router's view: every fleet that it has been told of, in order."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []
        self._changed = asyncio.Event()

    async def run(self, client: Registry) -> None:
        async with aclosing(follow(client, REJOIN_S)) as fleets:
            async for fleet in fleets:
                self.note(fleet)

    def note(self, fleet: Fleet) -> None:
        self.seen.append({member.worker.worker_id for member in fleet.members})
        self._changed.set()

    async def until(self, *worker_ids: str) -> None:
        async with asyncio.timeout(LEASE_S + CONVERGENCE_S):
            while not self.seen or self.seen[-1] != set(worker_ids):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def following(agent: ConsulAgent) -> AsyncIterator[Follower]:
    client = registry(agent)
    follower = Follower()
    task = asyncio.create_task(follower.run(client))
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])
        await client.close()
