"""Router, prefill and decode worker that meet on a real Consul with an ACL, and what they do without it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Answer, start_baton, wait_until
from consul_agent import ConsulAgent, free_ports
from model_folders import prompt_ids
from oracle import Reference, assert_equal, reference

TOKEN = "5a1f3a2e-0000-4000-8000-1b6f1d1c0de5"
SECRET = "0123456789abcdef" * 4
LEASE_S = 3.0
GRACE_S = 1.0
CONVERGENCE_S = 5.0
START_TIMEOUT_S = 60.0
PROMPT_TOKENS = 100


class Fleet:
    """Two routers with one worker of each role, each started as on a host of its own."""

    def __init__(self, agent: ConsulAgent, model: Path, cleanup: ExitStack) -> None:
        self._environment = {"BATON_SECRET": SECRET, "BATON_REGISTRY_TOKEN": TOKEN}
        self._common = {"model": model, "registry": f"consul://{agent.address}/fleet"}
        self._cleanup = cleanup
        self._stderr = cleanup.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - entered
        worker = {"threads": 1, "kv_blocks": 256}
        self._clients = [self._start_router(port) for port in free_ports(2)]
        self.prefill = self._start("prefill", **worker)
        self.decode = self._start("decode", **worker)

    def roles(self, client: httpx.Client) -> list[str]:
        try:
            workers = client.get("/workers").raise_for_status().json()["workers"]
        except httpx.TransportError:
            return []
        return sorted(worker["role"] for worker in workers)

    def wait_for(self, *roles: str, timeout_s: float) -> None:
        def is_so() -> bool:
            return all(
                self.roles(client) == list(roles) and client.get("/ready").is_success
                for client in self._clients
            )

        wait_until(is_so, timeout_s, self._stderr_so_far)

    def complete(self, prompt: tuple[int, ...] | list[int], **fields: Any) -> Answer:
        """Of the routers in turn."""
        self._clients.reverse()
        body = {"prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True} | fields
        answer = self._clients[0].post("/v1/completions", json=body | {"return_token_ids": True})
        assert answer.status_code == httpx.codes.OK, answer.text
        return Answer(answer.json(), answer.headers)

    def _stderr_so_far(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def _start_router(self, port: int) -> httpx.Client:
        self._start("router", port=port, disaggregation="always")
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0, trust_env=False)
        self._cleanup.callback(client.close)
        return client

    def _start(self, command: str, **options: object) -> subprocess.Popen[str]:
        process = start_baton(command, self._common | options, self._environment, stderr=self._stderr)
        assert process.stdout is not None
        for release in (process.stdout.close, process.wait, process.kill):
            self._cleanup.callback(release)
        return process


@pytest.fixture
def agent() -> Iterator[ConsulAgent]:
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": TOKEN, "agent": TOKEN}}
    with ConsulAgent({"acl": acl}) as own:
        yield own


def test_a_fleet_on_consul_serves_on_while_consul_is_down_and_meets_again_on_an_empty_one(
    agent: ConsulAgent, llama: Path
) -> None:
    expected = reference(llama, PROMPT_TOKENS)
    with ExitStack() as cleanup:
        fleet = Fleet(agent, llama, cleanup)
        fleet.wait_for("decode", "prefill", timeout_s=START_TIMEOUT_S)
        answer = fleet.complete(expected.prompt)
        assert_equal(answer, expected)
        assert answer.prefill.startswith("prefill-")
        agent.kill()
        serve_for(LEASE_S + GRACE_S, fleet, expected)
        fleet.wait_for("decode", "prefill", timeout_s=0.0)
        agent.start()
        wait_until(lambda: passing(agent) == 2, CONVERGENCE_S, lambda: passing(agent))
        serve_for(1.0, fleet, expected)
        fleet.prefill.terminate()
        assert fleet.prefill.wait(10) == 0
        fleet.wait_for("decode", timeout_s=CONVERGENCE_S)
        assert fleet.complete(prompt_ids(PROMPT_TOKENS, seed=1)).prefill == "local"


def test_a_wrong_token_stops_a_router_with_the_reason(agent: ConsulAgent, llama: Path) -> None:
    [port] = free_ports(1)
    options = {"model": llama, "port": port, "registry": f"consul://{agent.address}/fleet"}
    environment = {"BATON_SECRET": SECRET, "BATON_REGISTRY_TOKEN": TOKEN[:-1] + "0"}
    process = start_baton("router", options, environment, stderr=subprocess.PIPE)
    _, stderr = process.communicate(timeout=START_TIMEOUT_S)
    assert process.returncode == 2
    assert "refuses the token: ACL not found [registry_token]" in stderr


def serve_for(seconds: float, fleet: Fleet, expected: Reference) -> None:
    """Requests over the pair of workers, one after another; none may fail or differ."""
    ends_at_s = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends_at_s:
        number += 1
        answer = fleet.complete(expected.prompt, cache_salt=f"{seconds} {number}")
        assert_equal(answer, expected)
        assert answer.prefill.startswith("prefill-")


def passing(agent: ConsulAgent) -> int:
    """How many workers the catalogue holds whose lease is live."""
    url = f"http://{agent.address}/v1/health/service/fleet-workers?passing"
    answer = httpx.get(url, headers={"X-Consul-Token": TOKEN}, trust_env=False)
    return len(answer.raise_for_status().json())
