"""The registry on a real Consul through what goes wrong with one: outages, lost memory, wrong tokens, strangers."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from consul_agent import ConsulAgent, consul_binary

from baton.discovery import open_registry
from baton.discovery.base import Registry, RegistryAccess, RegistryAddress
from baton.discovery.consul import ConsulRegistry
from baton.discovery.consul_api import ConsulApi
from baton.discovery.steady import follow
from baton.errors import ConfigError, Unauthorized, Unavailable
from baton.fleet import Fleet, ModelInfo, Role, WorkerInfo, WorkerLoad, WorkerProfile, WorkerState
from baton.worker.membership import Membership

SECRET = b"a secret of the test's own"
ROOT_TOKEN = "5a1f3a2e-0000-4000-8000-1b6f1d1c0de5"
CANDIDATE = Path(__file__).parents[1] / "candidate.py"
LEASE_S = 1.0
REJOIN_S = 1.5
CONVERGENCE_S = 5.0
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
OTHER = replace(WORKER, worker_id="decode-1")


def registry(agent: ConsulAgent, prefix: str = "fleet", secret: bytes = SECRET, token: str = "") -> Registry:
    host, _, port = agent.address.partition(":")
    api = ConsulApi(RegistryAddress("consul", host, int(port), prefix), RegistryAccess(token))
    return ConsulRegistry(api, prefix, secret, LEASE_S)


@pytest.fixture
def agent() -> Iterator[ConsulAgent]:
    """One of the test's own, to be ill-treated."""
    with ConsulAgent() as own:
        yield own


@asynccontextmanager
async def joined(agent: ConsulAgent, worker: WorkerInfo) -> AsyncIterator[Membership]:
    """A worker as it keeps its membership; on leaving the context it dies without a word."""
    client = registry(agent)
    membership = Membership(client, worker, WorkerLoad, heartbeat_s=0.25, on_registered=lambda: None)
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


async def test_a_consul_killed_and_restarted_empty_costs_no_member_and_forgets_who_died_meanwhile(
    agent: ConsulAgent,
) -> None:
    async with following(agent) as follower, joined(agent, WORKER):
        async with joined(agent, OTHER):
            await follower.until("decode-0", "decode-1")
            agent.kill()
            before = len(follower.seen)
            await asyncio.sleep(LEASE_S)
            assert follower.seen[before:] == [], "the last known members stay"
        await asyncio.to_thread(agent.start)
        async with asyncio.timeout(CONVERGENCE_S):
            await follower.until("decode-0")
        assert all("decode-0" in fleet for fleet in follower.seen[before:])


async def test_a_consul_that_stands_still_for_longer_than_the_leases_costs_no_member(
    agent: ConsulAgent,
) -> None:
    async with following(agent) as follower, joined(agent, WORKER):
        await follower.until("decode-0")
        before = len(follower.seen)
        agent.pause()
        await asyncio.sleep(2 * LEASE_S)
        agent.resume()
        async with asyncio.timeout(CONVERGENCE_S), joined(agent, OTHER):
            await follower.until("decode-0", "decode-1")
        assert all("decode-0" in fleet for fleet in follower.seen[before:])


async def test_a_router_that_starts_before_consul_meets_the_fleet_when_consul_is_there(
    agent: ConsulAgent,
) -> None:
    agent.kill()
    async with following(agent) as follower, joined(agent, WORKER):
        await asyncio.sleep(0.5)
        assert follower.seen == []
        await asyncio.to_thread(agent.start)
        await follower.until("decode-0")


# --- several fleets, strangers -----------------------------------------------------------------------------


async def test_fleets_with_prefixes_of_their_own_do_not_see_each_other(consul_agent: ConsulAgent) -> None:
    ours, theirs = (registry(consul_agent, prefix) for prefix in ("ours", "theirs"))
    await theirs.register(WORKER, WorkerState.READY, WorkerLoad())
    assert (await anext(ours.watch())).members == ()
    assert len((await anext(theirs.watch())).members) == 1
    for client in (ours, theirs):
        await client.close()


async def test_a_worker_of_another_secret_or_a_forged_entry_never_enters_the_fleet(
    consul_agent: ConsulAgent, caplog: pytest.LogCaptureFixture
) -> None:
    ours, stranger = registry(consul_agent, "f"), registry(consul_agent, "f", b"another secret altogether")
    await stranger.register(OTHER, WorkerState.READY, WorkerLoad())
    for number, meta in enumerate([{}, {"record-0": "!"}, {"record-0": "AAAA", "signature": "00"}]):
        entry = {"name": "f-workers", "id": f"forged-{number}", "meta": meta}
        url = f"http://{consul_agent.address}/v1/agent/service/register"
        put = partial(httpx.put, url, json=entry, trust_env=False)
        (await asyncio.to_thread(put)).raise_for_status()
    await ours.register(WORKER, WorkerState.READY, WorkerLoad())
    fleet = await anext(ours.watch())
    assert [member.worker.worker_id for member in fleet.members] == ["decode-0"]
    for name in ("f-workers:decode-1", "forged-0", "forged-1", "forged-2"):
        assert f"service {name} on Consul is not used: " in caplog.text
    for client in (ours, stranger):
        await client.close()


@pytest.mark.parametrize("prefix", ["-a", "a_b", "a" * 49, "ä"])
def test_a_prefix_that_consul_cannot_have_in_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="prefix") as error:
        open_registry(f"consul://127.0.0.1:1/{prefix}", SECRET, RegistryAccess())
    assert error.value.field == "registry"


# --- ACL, TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_agent() -> Iterator[ConsulAgent]:
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": ROOT_TOKEN, "agent": ROOT_TOKEN}}
    with ConsulAgent({"acl": acl}) as own:
        yield own


def policy_token(agent: ConsulAgent, rules: str) -> str:
    """A new token that may do what `rules` say."""
    name = f"policy-{secrets.token_hex(4)}"
    headers = {"X-Consul-Token": ROOT_TOKEN}
    with httpx.Client(base_url=f"http://{agent.address}", headers=headers, trust_env=False) as http:
        http.put("/v1/acl/policy", json={"Name": name, "Rules": rules}).raise_for_status()
        answer = http.put("/v1/acl/token", json={"Policies": [{"Name": name}]}).raise_for_status()
    return str(answer.json()["SecretID"])


RULES = """
service_prefix "fleet-" { policy = "write" }
key_prefix "fleet/" { policy = "write" }
session_prefix "" { policy = "write" }
node_prefix "" { policy = "read" }
"""


async def test_a_wrong_token_is_refused_with_the_reason(guarded_agent: ConsulAgent) -> None:
    wrong = registry(guarded_agent, token="5a1f3a2e-0000-4000-8000-000000000000")
    with pytest.raises(Unauthorized, match="ACL not found") as error:
        await wrong.register(WORKER, WorkerState.READY, WorkerLoad())
    assert error.value.field == "registry_token"
    with pytest.raises(Unauthorized, match="ACL not found"):
        await anext(follow(wrong))
    with pytest.raises(Unauthorized, match="ACL not found"):
        await wrong.elect("planner", "a")
    weak = registry(guarded_agent, token=policy_token(guarded_agent, RULES.replace("write", "read")))
    with pytest.raises(Unauthorized, match="Permission denied"):
        await weak.register(WORKER, WorkerState.READY, WorkerLoad())
    for client in (wrong, weak):
        await client.close()


async def test_the_documented_policy_is_enough(guarded_agent: ConsulAgent) -> None:
    client = registry(guarded_agent, token=policy_token(guarded_agent, RULES))
    await client.register(WORKER, WorkerState.READY, WorkerLoad())
    assert await client.heartbeat(WORKER, WorkerState.DRAINING, WorkerLoad())
    fleet = await anext(client.watch())
    assert [member.state for member in fleet.members] == [WorkerState.DRAINING]
    await client.deregister(WORKER)
    async with asyncio.timeout(CONVERGENCE_S):
        while not await client.elect("planner", "a"):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.25)
    await client.resign("planner", "a")
    await client.close()


@pytest.fixture
def tls_folder(tmp_path: Path) -> Path:
    for words in ("ca create", "cert create -server -additional-ipaddress=127.0.0.1", "cert create -client"):
        subprocess.run(
            [consul_binary(), "tls", *words.split()], cwd=tmp_path, check=True, capture_output=True
        )
    return tmp_path


async def test_over_tls_each_side_shows_its_certificate(tls_folder: Path) -> None:
    ca, certificate, key = (
        tls_folder / name
        for name in (
            "consul-agent-ca.pem",
            "dc1-client-consul-0.pem",
            "dc1-client-consul-0-key.pem",
        )
    )
    tls = {
        "ca_file": str(ca),
        "cert_file": str(tls_folder / "dc1-server-consul-0.pem"),
        "key_file": str(tls_folder / "dc1-server-consul-0-key.pem"),
        "verify_incoming_https": True,
    }
    with ConsulAgent(tls, scheme="https") as guarded:
        uri = f"consul+https://{guarded.address}/fleet"
        known = open_registry(uri, SECRET, RegistryAccess(ca=ca, certificate=certificate, key=key))
        async with asyncio.timeout(10):
            async for fleet in follow(known):
                assert fleet.members == ()
                break
        await known.register(WORKER, WorkerState.READY, WorkerLoad())
        assert len((await anext(known.watch())).members) == 1
        for access, reason in (
            (RegistryAccess(), "CERTIFICATE_VERIFY_FAILED"),
            (RegistryAccess(ca=ca), guarded.address),
        ):
            stranger = open_registry(uri, SECRET, access)
            with pytest.raises(Unavailable, match=reason):
                await stranger.register(OTHER, WorkerState.READY, WorkerLoad())
            await stranger.close()
        await known.close()


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        open_registry("consul+https://h:1", SECRET, RegistryAccess(ca=tmp_path / "nowhere.pem"))
    with pytest.raises(ConfigError, match=r"consul\+https"):
        open_registry("consul://h:1", SECRET, RegistryAccess(ca=tmp_path / "nowhere.pem"))


# --- election ----------------------------------------------------------------------------------------------


class Candidates:
    """Processes that stand for one office, and the file of what they did while they held it."""

    def __init__(self, agent: ConsulAgent, acts: Path) -> None:
        self._acts = acts
        self.processes = {
            name: subprocess.Popen(
                [sys.executable, "-P", str(CANDIDATE), agent.address, "fleet", name, str(acts)]
            )
            for name in ("a", "b")
        }

    def __enter__(self) -> Candidates:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def acts(self) -> list[str]:
        """Names, in the order of time."""
        if not self._acts.exists():
            return []
        lines = [line.split() for line in self._acts.read_text().splitlines()]
        return [name for name, _ in sorted(lines, key=lambda line: float(line[1]))]

    def terms(self) -> list[str]:
        """Who held the office, one after another."""
        acts = self.acts()
        return [name for number, name in enumerate(acts) if number == 0 or acts[number - 1] != name]

    def wait_until(self, condition: Callable[[list[str]], bool]) -> None:
        deadline_s = time.monotonic() + 20.0
        while not condition(self.acts()):
            assert time.monotonic() < deadline_s, self.terms()
            time.sleep(0.05)


def test_of_two_processes_one_at_a_time_leads_through_an_empty_restart_of_consul_and_a_leaders_death(
    agent: ConsulAgent, tmp_path: Path
) -> None:
    with Candidates(agent, tmp_path / "acts") as candidates:
        candidates.wait_until(lambda acts: len(acts) > 10)
        agent.kill()
        agent.start()
        acted = len(candidates.acts())
        candidates.wait_until(lambda acts: len(acts) > acted + 100)
        assert len(candidates.terms()) <= 2, "one term before, one after, never to and fro"
        leader = candidates.acts()[-1]
        [other] = set(candidates.processes) - {leader}
        candidates.processes[leader].kill()
        candidates.wait_until(lambda acts: acts[-1] == other)
        assert candidates.terms()[-2:] == [leader, other]
        assert len(candidates.terms()) <= 3
