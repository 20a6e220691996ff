"""A worker that may join a registry, and clients of a registry on Consul whose leases are short."""

from __future__ import annotations

from consul_agent import ConsulAgent

from baton.discovery.base import Registry, RegistryAccess, RegistryAddress
from baton.discovery.consul import ConsulRegistry
from baton.discovery.consul_api import ConsulApi
from baton.fleet import ModelInfo, Role, WorkerInfo, WorkerProfile

SECRET = b"a secret of the test's own"
LEASE_S = 1.0
WORKER = WorkerInfo(
    worker_id="decode-0",
    epoch=b"12345678",
    role=Role.DECODE,
    address="127.0.0.1:1",
    pid=7,
    model=ModelInfo("m", "fingerprint", 2048, 320, (1, 2)),
    kv_layout=bytes(range(256)) * 3,
    block_size=16,
    profile=WorkerProfile(1000.0, 0.01, 1e9),
    version="0",
)


def registry(agent: ConsulAgent, prefix: str = "fleet", secret: bytes = SECRET, token: str = "") -> Registry:
    host, _, port = agent.address.partition(":")
    api = ConsulApi(RegistryAddress("consul", host, int(port), prefix), RegistryAccess(token))
    return ConsulRegistry(api, prefix, secret, LEASE_S)
