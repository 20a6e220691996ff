"""A process of its own that stands for an office on Consul and, while it holds it, acts: it appends its name and
the time to a file. `candidate.py HOST:PORT PREFIX NAME FILE`."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from baton.discovery.base import RegistryAccess, RegistryAddress
from baton.discovery.consul import ConsulRegistry
from baton.discovery.consul_api import ConsulApi
from baton.discovery.election import Candidacy

LEASE_S = 1.0


async def stand(address: str, prefix: str, name: str, acts: Path) -> None:
    host, _, port = address.partition(":")
    api = ConsulApi(RegistryAddress("consul", host, int(port), prefix), RegistryAccess())
    candidacy = Candidacy(ConsulRegistry(api, prefix, b"secret", LEASE_S), "planner", name)
    campaign = asyncio.create_task(candidacy.run())
    with acts.open("a") as file:
        while not campaign.done():
            if candidacy.is_leader:
                print(name, time.clock_gettime(time.CLOCK_BOOTTIME), file=file, flush=True)
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(stand(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
