"""Who may use a Consul that asks: ACL tokens and certificates, each refusal with its reason."""

from __future__ import annotations

import asyncio
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from announced_worker import SECRET, WORKER
from consul_agent import ConsulAgent, consul_binary
from consul_fleet import registry

from baton.discovery import open_registry
from baton.discovery.base import RegistryAccess
from baton.discovery.steady import follow
from baton.errors import ConfigError, Unauthorized, Unavailable
from baton.fleet import WorkerLoad, WorkerState

README = Path(__file__).parents[2] / "README.md"
ROOT_TOKEN = "5a1f3a2e-0000-4000-8000-1b6f1d1c0de5"
CONVERGENCE_S = 5.0
OTHER = replace(WORKER, worker_id="decode-1")


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


def documented_rules() -> str:
    """The policy in the README, for the prefix `fleet`."""
    policy = re.search(r"```hcl\n(.+?)```", README.read_text(), re.DOTALL)
    assert policy is not None
    return policy[1].replace("chat", "fleet")


async def test_a_wrong_token_is_refused_with_the_reason(guarded_agent: ConsulAgent) -> None:
    wrong = registry(guarded_agent, token="5a1f3a2e-0000-4000-8000-000000000000")
    with pytest.raises(Unauthorized, match="ACL not found") as error:
        await wrong.register(WORKER, WorkerState.READY, WorkerLoad())
    assert error.value.field == "registry_token"
    with pytest.raises(Unauthorized, match="ACL not found"):
        await anext(follow(wrong))
    with pytest.raises(Unauthorized, match="ACL not found"):
        await wrong.elect("planner", "a")
    weak = registry(
        guarded_agent, token=policy_token(guarded_agent, documented_rules().replace("write", "read"))
    )
    with pytest.raises(Unauthorized, match="Permission denied"):
        await weak.register(WORKER, WorkerState.READY, WorkerLoad())
    for client in (wrong, weak):
        await client.close()


@pytest.mark.parametrize(
    "rules", ['service_prefix "other-" { policy = "write" }', 'session_prefix "" { policy = "read" }']
)
async def test_a_token_that_may_not_see_the_workers_is_told_so_not_that_nobody_is_there(
    guarded_agent: ConsulAgent, rules: str
) -> None:
    blind = registry(guarded_agent, token=policy_token(guarded_agent, rules))
    with pytest.raises(Unauthorized, match="may not read the service fleet-workers") as error:
        await anext(follow(blind))
    assert error.value.field == "registry_token"
    await blind.close()


async def test_the_documented_policy_is_enough(guarded_agent: ConsulAgent) -> None:
    client = registry(guarded_agent, token=policy_token(guarded_agent, documented_rules()))
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
    with pytest.raises(ConfigError, match="without its certificate"):
        open_registry("consul+https://h:1", SECRET, RegistryAccess(key=tmp_path / "key.pem"))
    with pytest.raises(ConfigError, match=r"consul\+https"):
        open_registry("consul://h:1", SECRET, RegistryAccess(ca=tmp_path / "nowhere.pem"))
