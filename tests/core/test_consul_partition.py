"""Consul on the other side of a network that is cut: a link between two network namespaces."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from announced_worker import WORKER
from consul_agent import ConsulAgent
from consul_fleet import LEASE_S, following, joined

HEALS_WITHIN_S = 5.0
OTHER = replace(WORKER, worker_id="decode-1")

pytestmark = pytest.mark.soak


@dataclass(frozen=True)
class Link:
    """`near` is our end; `far` is the other's address, in the namespace `network`."""

    network: str
    near: str
    far: str

    def cut(self) -> None:
        """At the far end, so that the route to it stays: packets are lost, and go nowhere else."""
        ip("-n", self.network, "link", "set", "far", "down")

    def heal(self) -> None:
        ip("-n", self.network, "link", "set", "far", "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[Link]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making a network namespace needs root and iproute2")
    name = f"baton{os.getpid() % 100_000}"
    made = Link(name, f"{name}a", "198.18.77.2")
    ip("netns", "add", name)
    try:
        ip("link", "add", made.near, "type", "veth", "peer", "name", "far", "netns", name)
        ip("addr", "add", "198.18.77.1/30", "dev", made.near)
        ip("link", "set", made.near, "up")
        ip("-n", name, "addr", "add", f"{made.far}/30", "dev", "far")
        for device in ("far", "lo"):
            ip("-n", name, "link", "set", device, "up")
        yield made
    finally:
        ip("link", "del", made.near)  # at once; with its namespace it would go some time later
        ip("netns", "del", name)


@pytest.mark.parametrize("cut_s", [0.5, 2 * LEASE_S, 12.0])
async def test_a_partition_from_consul_costs_no_member_and_heals(link: Link, cut_s: float) -> None:
    with ConsulAgent(host=link.far, network=link.network) as agent:
        async with following(agent) as follower, joined(agent, WORKER):
            await follower.until("decode-0")
            before = len(follower.seen)
            await asyncio.to_thread(link.cut)
            await asyncio.sleep(cut_s)
            await asyncio.to_thread(link.heal)
            async with asyncio.timeout(HEALS_WITHIN_S), joined(agent, OTHER):
                await follower.until("decode-0", "decode-1")
            assert all("decode-0" in fleet for fleet in follower.seen[before:])
