"""One registry of each kind, over real sockets."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from announced_worker import SECRET
from consul_agent import ConsulAgent
from registry_client import Connect

from baton.discovery.base import Registry, RegistryAccess, RegistryAddress
from baton.discovery.consul import ConsulRegistry
from baton.discovery.consul_api import ConsulApi
from baton.discovery.embedded import SERVICE, EmbeddedRegistry, RegistryServicer
from baton.discovery.embedded_client import EmbeddedRegistryClient
from baton.rpc import Server


@pytest.fixture
def lease_s() -> float:
    """Longer than a test; those that wait for its end put another in its place."""
    return 30.0


@pytest.fixture
async def served(lease_s: float) -> AsyncIterator[tuple[EmbeddedRegistry, str]]:
    registry = EmbeddedRegistry(lease_s)
    server = Server("127.0.0.1", 0, SECRET)
    server.add(SERVICE, RegistryServicer(registry).mount)
    await server.start()
    yield registry, f"127.0.0.1:{server.port}"
    await server.stop(0)


@pytest.fixture(params=["embedded", "consul"])
async def connect(
    request: pytest.FixtureRequest, served: tuple[object, str], lease_s: float
) -> AsyncIterator[Connect]:
    """A new client of one registry, with the secret given."""
    async with AsyncExitStack() as cleanup:
        prefix = f"fleet-{secrets.token_hex(4)}"

        def client(secret: bytes) -> Registry:
            registry: Registry
            if request.param == "embedded":
                registry = EmbeddedRegistryClient(served[1], secret)
            else:
                agent: ConsulAgent = request.getfixturevalue("consul_agent")
                host, _, port = agent.address.partition(":")
                api = ConsulApi(RegistryAddress("consul", host, int(port), prefix), RegistryAccess())
                registry = ConsulRegistry(api, prefix, secret, lease_s)
            cleanup.push_async_callback(registry.close)
            return registry

        yield client


@pytest.fixture
def client(connect: Connect) -> Registry:
    return connect(SECRET)
