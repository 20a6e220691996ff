"""Clients that never stop asking, and hold every answer against the tokens of an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from model_folders import prompt_ids

DEADLINE_S = 60.0
"""Of one request, retries on other routers included: whatever takes longer counts as a hang."""

_RETRY_PAUSE_S = 0.1
_SAMPLED = {"temperature": 1.0, "top_p": 0.95}


@dataclass
class Choice:
    """finish_reason: empty until it has ended."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""


@dataclass(frozen=True)
class Reply:
    """complaint: why there are no choices."""

    status: int
    choices: list[Choice]
    complaint: str = ""


def bodies(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Requests of all kinds: greedy and seeded, short and long prompts, now and then several choices."""
    made = []
    for number in range(count):
        sampling = {"temperature": 0.0} if number % 2 else {**_SAMPLED, "seed": number}
        body = {
            "prompt": prompt_ids(20 + 37 * (number % 9), seed=number),
            "max_tokens": max_tokens // 2 + 7 * number % max_tokens,
            "n": 2 if number % 6 == 0 else 1,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        made.append(body | sampling)
    return made


@dataclass
class Crowd:
    """`faults`: whatever a client should never see. `late`: the ids of requests without an answer in time.
    `counts`: what else happened."""

    urls: Sequence[str]
    requests: Sequence[Mapping[str, Any]]
    expected: list[list[Choice]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    router_ends_s: dict[int, list[float]] = field(default_factory=dict)
    _began_at_s: float = field(default_factory=time.monotonic)
    _is_over: bool = False

    async def learn(self) -> None:
        """The undisturbed answers, one after the other."""
        async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as client:
            for body in self.requests:
                self.expected.append(_choices(await client.post(f"{self.urls[0]}/v1/completions", json=body)))

    async def ask(self, clients: int, rng: random.Random) -> None:
        """`clients` at a time, each with its next request as soon as the last is answered, until `stop`.

        Connections are not kept: httpx's pool may take one for expired that it has just given to a request, and
        closes it under way, which looks as if the router had.
        """
        limits = httpx.Limits(max_connections=4 * clients, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=DEADLINE_S, limits=limits, trust_env=False) as client:
            await asyncio.gather(*(self._one_client(client, rng.randrange(2**31)) for _ in range(clients)))

    def stop(self) -> None:
        """No new requests; those under way go on to their ends."""
        self._is_over = True

    def note_router_end(self, number: int) -> None:
        self.router_ends_s.setdefault(number, []).append(time.monotonic())

    async def _one_client(self, client: httpx.AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        while not self._is_over:
            number = rng.randrange(len(self.requests))
            request_id = f"{number}-{rng.getrandbits(64):x}"
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._one_request(client, rng, number, request_id)
            except TimeoutError:
                self.late.append(request_id)
                self._complain(f"request {request_id} had no answer within {DEADLINE_S:g} s")

    async def _one_request(
        self, client: httpx.AsyncClient, rng: random.Random, number: int, request_id: str
    ) -> None:
        """A salt of its own for every other request, so that prefixes are found and are not; half are streamed."""
        salt = {"cache_salt": f"{rng.random()}"} if rng.random() < 0.5 else {}
        body = {**self.requests[number], **salt, "stream": rng.random() < 0.5}
        router = rng.randrange(len(self.urls))
        while True:
            began_at_s = time.monotonic()
            try:
                reply = await _ask(client, f"{self.urls[router]}/v1/completions", body, request_id)
            except httpx.TransportError as error:
                self._note_hang_up(router, began_at_s, error)
            else:
                if reply.status != httpx.codes.SERVICE_UNAVAILABLE or not self._is_new(router, began_at_s):
                    self._check(number, reply)
                    return
                self.counts["turned away by a router that had just begun"] += 1
            router = (router + 1) % len(self.urls)
            await asyncio.sleep(_RETRY_PAUSE_S)

    def _note_hang_up(self, router: int, began_at_s: float, error: httpx.TransportError) -> None:
        """A router that has died owes no answer; any other does."""
        if self._is_new(router, began_at_s):
            self.counts["asked again, for their router had died"] += 1
        else:
            self._complain(f"router {router} hung up: {error!r}")

    def _is_new(self, router: int, began_at_s: float) -> bool:
        """Whether the router died during a request, or so shortly before that it may still be starting."""
        return any(began_at_s - DEADLINE_S < end_s for end_s in self.router_ends_s.get(router, []))

    def _complain(self, what: str) -> None:
        self.faults.append(f"{time.monotonic() - self._began_at_s:7.2f} s  {what}")

    def _check(self, number: int, reply: Reply) -> None:
        if reply.complaint:
            self._complain(f"request {number}: {reply.status} {reply.complaint[:300]}")
        elif reply.choices != self.expected[number]:
            self._complain(f"request {number}: {reply.choices} instead of {self.expected[number]}")
        else:
            self.counts["answered exactly"] += 1


async def _ask(client: httpx.AsyncClient, url: str, body: Mapping[str, Any], request_id: str) -> Reply:
    """Raises httpx.TransportError where the router hangs up."""
    async with client.stream("POST", url, json=body, headers={"X-Request-ID": request_id}) as answer:
        if not answer.is_success:
            return Reply(answer.status_code, [], (await answer.aread()).decode())
        if body["stream"]:
            return await _read_stream(answer, body["n"])
        await answer.aread()
        return Reply(answer.status_code, _choices(answer))


async def _read_stream(answer: httpx.Response, choices: int) -> Reply:
    """An error ends a stream without [DONE]."""
    lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    if lines[-1:] != ["[DONE]"]:
        return Reply(answer.status_code, [], f"it ends with {lines[-1:]}")
    read = [Choice() for _ in range(choices)]
    for line in lines[:-1]:
        for choice in json.loads(line)["choices"]:
            read[choice["index"]].tokens += choice["token_ids"]
            read[choice["index"]].finish_reason += choice["finish_reason"] or ""
    return Reply(answer.status_code, read)


def _choices(answer: httpx.Response) -> list[Choice]:
    choices = sorted(answer.raise_for_status().json()["choices"], key=lambda choice: choice["index"])
    return [Choice(choice["token_ids"], choice["finish_reason"]) for choice in choices]
