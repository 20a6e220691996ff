"""What `truth.py` sees of a live cluster: requests sent at their times, and what workers and event log tell."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scaled_workload import BLOCK_TOKENS
from token_stream import TokenTimes, stream_tokens

from baton.fleet import WorkerProfile
from baton.sim.workload import SimRequest, Workload

Speeds = tuple[WorkerProfile, WorkerProfile]
"""Of the prefill and of the decode worker."""

_ASK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds, of each request that has such a figure."""

    ttft_s: list[float]
    tpot_s: list[float]


@dataclass(frozen=True, slots=True)
class Replayed:
    """Requests as they were sent, from `began_at_s` on, their answers, and what workers reported meanwhile."""

    sent: Workload
    began_at_s: float
    answers: list[TokenTimes]
    reported: Speeds

    def latencies(self) -> Latencies:
        tpots_s = [answer.tpot_s for answer in self.answers]
        return Latencies([answer.ttft_s for answer in self.answers], [s for s in tpots_s if s is not None])


class Live:
    """The cluster at `url`, and prompts for it."""

    def __init__(self, url: str, model_vocabulary: int) -> None:
        self._url = url
        self._vocabulary = model_vocabulary
        self._rng = np.random.default_rng(0)

    async def replay(self, sent: Workload) -> Replayed:
        """All requests at their times."""
        began_at_s = time.perf_counter()

        async def one(request: SimRequest, prompt: list[int]) -> TokenTimes:
            await asyncio.sleep(max(0.0, began_at_s + request.arrival_s - time.perf_counter()))
            return await stream_tokens(self._url, prompt, request.output_tokens)

        prompts = [self._prompt(request) for request in sent.requests]
        reported = asyncio.create_task(self._reported(sent.requests[-1].arrival_s))
        answers = await asyncio.gather(*map(one, sent.requests, prompts))
        return Replayed(sent, began_at_s, answers, await reported)

    async def _reported(self, arrivals_s: float) -> Speeds:
        """The mean of what the workers report each second while requests arrive, from half-time on: after the last
        one they have cores to themselves, and are faster."""
        await asyncio.sleep(arrivals_s / 2)
        asked = [self.profiles()]
        for _ in range(int(arrivals_s / 2 / _ASK_EVERY_S)):
            await asyncio.sleep(_ASK_EVERY_S)
            asked.append(await asyncio.to_thread(self.profiles))
        prefill, decode = zip(*asked, strict=True)
        return mean_of(prefill), mean_of(decode)

    def profiles(self) -> Speeds:
        """Of the prefill and of the decode worker, as they report them now."""
        workers: list[dict[str, Any]] = httpx.get(f"{self._url}/workers", trust_env=False).json()["workers"]
        by_role = {worker["role"]: WorkerProfile(**worker["profile"]) for worker in workers}
        return by_role["prefill"], by_role["decode"]

    def _prompt(self, request: SimRequest) -> list[int]:
        """Equal hashes become equal tokens, the rest is this request's own."""
        blocks = request.hashes[: request.prompt_tokens // BLOCK_TOKENS]
        streams = [np.random.default_rng(list(block)) for block in blocks]
        shared = [token for stream in streams for token in self._random_tokens(stream, BLOCK_TOKENS)]
        return shared + self._random_tokens(self._rng, request.prompt_tokens - len(shared))

    def _random_tokens(self, rng: np.random.Generator, count: int) -> list[int]:
        tokens: list[int] = rng.integers(10, self._vocabulary, count).tolist()
        return tokens


def mean_of(profiles: Sequence[WorkerProfile]) -> WorkerProfile:
    """Term by term."""
    names = [term.name for term in fields(WorkerProfile)]
    return WorkerProfile(**{name: float(np.mean([getattr(one, name) for one in profiles])) for name in names})


def mean_start_s(event_log: Path) -> float:
    """Mean seconds from a prompt's first token until its decode worker had heard of it; 0 where none was handed
    off."""
    starts_s = [event["start_s"] for event in _handoffs(event_log)]
    return float(np.mean(starts_s)) if starts_s else 0.0


def fronts_s(answers: Sequence[TokenTimes], event_log: Path) -> tuple[float, ...]:
    """What client, HTTP, router and RPC have added to first tokens: of each prompt that was handed off, its TTFT
    less the time that it was at the prefill worker, or waited for memory on the decode worker. 0 where none was."""
    ttft_s = {answer.response_id: answer.ttft_s for answer in answers}
    added_s = []
    for event in _handoffs(event_log):
        if event["request_id"] in ttft_s:
            at_workers_s = event["queued_s"] + max(event["compute_s"], event["reserve_s"])
            added_s.append(max(0.0, ttft_s[event["request_id"]] - at_workers_s))
    return tuple(added_s) or (0.0,)


def _handoffs(event_log: Path) -> list[dict[str, Any]]:
    events = map(json.loads, event_log.read_text().splitlines())
    return [event for event in events if event.get("transition") == "hand_off"]
