"""Sends requests at their times, whatever becomes of those before them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress
from token_stream import StreamFailed, TokenTimes, stream_tokens
from turning_traffic import Answer, Sent

_LEAD_S = 0.5
"""From drawing the prompts to the first request."""


async def send(
    url: str, plan: Sequence[Sent], vocabulary: int, grace_s: float, progress: Progress, name: str
) -> tuple[list[Answer], float]:
    """All of `plan`; what has not ended `grace_s` after the last was sent is given up. Prompts are random, so that
    none is cached. Returns how they went, and the Unix time of the plan's 0."""
    rng = np.random.default_rng()
    prompts: list[list[int]] = [rng.integers(10, vocabulary, sent.prompt_tokens).tolist() for sent in plan]
    began_at_s = time.perf_counter() + _LEAD_S - plan[0].at_s
    began_unix_s = time.time() + _LEAD_S - plan[0].at_s
    times = [TokenTimes(0.0) for _ in plan]
    tasks = [
        asyncio.create_task(_one(url, sent, began_at_s, prompt, seen))
        for sent, prompt, seen in zip(plan, prompts, times, strict=True)
    ]
    bar = progress.add_task(name, total=len(tasks))
    for task in tasks:
        task.add_done_callback(lambda _: progress.advance(bar))
    await asyncio.wait(tasks, timeout=began_at_s + plan[-1].at_s + grace_s - time.perf_counter())
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    progress.remove_task(bar)
    return [
        _answer(sent, seen, end) for sent, seen, end in zip(plan, times, ended, strict=True)
    ], began_unix_s


async def _one(url: str, sent: Sent, began_at_s: float, prompt: list[int], times: TokenTimes) -> None:
    await asyncio.sleep(max(0.0, began_at_s + sent.at_s - time.perf_counter()))
    await stream_tokens(url, prompt, sent.output_tokens, times)


def _answer(sent: Sent, times: TokenTimes, end: BaseException | None) -> Answer:
    """Raises what is neither a failed request nor one that was given up."""
    match end:
        case None:
            return Answer(sent, times.ttft_s, times.tpot_s)
        case asyncio.CancelledError():
            return Answer(sent)
        case StreamFailed() | OSError():
            return Answer(sent, error=str(end) or type(end).__name__)
    raise end


def decisions(event_log: Path, began_unix_s: float) -> list[dict[str, object]]:
    """Of the planner: those that acted or were held back by something else than the one before."""
    events = map(json.loads, event_log.read_text().splitlines())
    return [
        {"at_s": event["time"] - began_unix_s, **event["planner"]} for event in events if "planner" in event
    ]
