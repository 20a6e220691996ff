"""Clients that make everything grow that could: sessions, prompts, tenants and connections, each seen once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from typing import Any

import httpx
from model_folders import prompt_ids

CLIENTS = 6
_ANSWER_TIMEOUT_S = 60.0
_SESSION_TURNS = 3
_LEAVES_AFTER_S = 0.05
_PAUSE_S = 0.3
"""Before each turn: memory grows with requests, not with load, and workers that join need a share of the cores."""


class Churn:
    """`counts`: requests by how they ended."""

    def __init__(self, url: str) -> None:
        self.counts: Counter[str] = Counter()
        self._url = url
        self.is_over = False
        self._numbers = itertools.count()

    async def run(self) -> None:
        """Until `stop`."""
        await asyncio.gather(*(self._one_client(random.Random(seed)) for seed in range(CLIENTS)))

    def stop(self) -> None:
        self.is_over = True

    async def _one_client(self, rng: random.Random) -> None:
        """A new connection for every session."""
        while not self.is_over:
            async with httpx.AsyncClient(
                base_url=self._url, timeout=_ANSWER_TIMEOUT_S, trust_env=False
            ) as client:
                await self._one_session(client, rng, next(self._numbers))

    async def _one_session(self, client: httpx.AsyncClient, rng: random.Random, number: int) -> None:
        prompt = prompt_ids(rng.randrange(20, 300), seed=number)
        headers = {"X-Session-ID": f"session {number}", "X-Tenant-ID": f"tenant {number}"}
        for turn in range(_SESSION_TURNS):
            await asyncio.sleep(_PAUSE_S)
            body: dict[str, Any] = {
                "prompt": prompt,
                "max_tokens": rng.randrange(4, 48),
                "ignore_eos": True,
                "return_token_ids": True,
                "n": rng.choice((1, 1, 1, 2)),
            }
            if rng.random() < 0.2:
                await self._leave_in_the_middle(client, body, headers)
                continue
            if rng.random() < 0.05:
                body["max_tokens"] = -turn - 1
            answer = await client.post("/v1/completions", json=body, headers=headers)
            self.counts[str(answer.status_code)] += 1
            if answer.is_success:
                prompt = [*prompt, *answer.json()["choices"][0]["token_ids"]]

    async def _leave_in_the_middle(
        self, client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]
    ) -> None:
        body |= {"stream": True, "max_tokens": 500}
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            self.counts[f"{answer.status_code}, left"] += 1
            await asyncio.sleep(_LEAVES_AFTER_S)
