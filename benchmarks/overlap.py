"""Measures how much of a hand-off hides behind the computation of its prompt, on live clusters.

`python benchmarks/overlap.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import rows
from rich.console import Console
from rich.progress import track
from rows import Row

EXAMPLES = """
examples:
  python benchmarks/overlap.py --quick
  python benchmarks/overlap.py --transport tcp --chunk-tokens 256 --json overlap.json
  python benchmarks/overlap.py --model /models/qwen3 --prompt-tokens 8000

what is measured:
  two clusters of `baton up` answer the same prompts in turn. One computes a prompt in chunks and pushes each while
  the next is computed; the other computes it in one chunk, so that all blocks leave after the computation. The
  exposed time is that from the end of the computation to the acknowledgement of the last block, on the prefill
  worker's clock, as the event log tells it; figures are medians.
"""
READY_PREFIX = "baton ready at "
STOP_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 300.0
QUICK_PROMPTS = 8
WARM_UP_PROMPTS = 2
MS = 1000.0


class Cluster:
    """One prefill and one decode worker that compute `chunk_tokens` of a prompt in one step."""

    def __init__(self, url: str, event_log: Path) -> None:
        self._client = httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S, trust_env=False)
        self._event_log = event_log

    def hand_off(self, prompt: list[int], salt: str) -> dict[str, Any]:
        """The event of the hand-off of `prompt`. Raises HTTPStatusError."""
        body = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True, "cache_salt": salt}
        self._client.post("/v1/completions", json=body).raise_for_status()
        events: list[dict[str, Any]] = [json.loads(line) for line in self._event_log.read_text().splitlines()]
        return [event for event in events if event["transition"] == "hand_off"][-1]

    def close(self) -> None:
        self._client.close()


@contextmanager
def running(options: argparse.Namespace, chunk_tokens: int) -> Iterator[Cluster]:
    """`baton up`, from its ready line to its end. Raises RuntimeError where it does not come up."""
    with tempfile.TemporaryDirectory() as folder:
        event_log = Path(folder) / "events.jsonl"
        flags = ["--port=0", "--local-prefill-tokens=0", f"--chunk-tokens={chunk_tokens}"]
        flags += [
            f"--event-log={event_log}",
            f"--transport={options.transport}",
            f"--threads={options.threads}",
        ]
        flags += [f"--model={options.model}"] if options.model is not None else []
        command = [sys.executable, "-P", "-m", "baton.cli", "up", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith(READY_PREFIX):
                raise RuntimeError(f"{' '.join(command)} ended before it was ready")
            cluster = Cluster(line.removeprefix(READY_PREFIX).strip(), event_log)
            yield cluster
            cluster.close()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_TIMEOUT_S)
            process.stdout.close()


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of all hand-offs: those pushed in chunks, and those of whole prompts."""
    rng = np.random.default_rng(0)
    told: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    with ExitStack() as stack:
        sizes = (options.chunk_tokens, options.prompt_tokens)
        clusters = [stack.enter_context(running(options, chunk_tokens)) for chunk_tokens in sizes]
        console = Console(stderr=True)
        prompts = range(WARM_UP_PROMPTS + options.prompts)
        for number in track(prompts, "prompts", console=console, disable=not console.is_terminal):
            prompt = rng.integers(10, options.vocab, options.prompt_tokens).tolist()
            for cluster, events in zip(clusters, told, strict=True):
                event = cluster.hand_off(prompt, str(number))
                if number >= WARM_UP_PROMPTS:
                    events.append(event)
    return told


def figures(chunked: list[dict[str, Any]], whole: list[dict[str, Any]]) -> list[Row]:
    exposed_s, transfer_s, compute_s = (
        _median(events, name)
        for events, name in ((chunked, "exposed_s"), (whole, "exposed_s"), (chunked, "compute_s"))
    )
    return [
        Row(
            name=f"exposed hand-off of {chunked[0]['bytes']:,} bytes over {chunked[0]['scheme']}",
            value=exposed_s * MS,
            unit="ms",
            peer="the prompt in one chunk",
            peer_value=transfer_s * MS,
            ratio=transfer_s / exposed_s,
        ),
        Row(name="hidden share of the hand-off", value=100 * (1 - exposed_s / transfer_s), unit="%"),
        Row(
            name="computation of the prompt",
            value=compute_s * MS,
            unit="ms",
            peer="the prompt in one chunk",
            peer_value=_median(whole, "compute_s") * MS,
            ratio=_median(whole, "compute_s") / compute_s,
        ),
    ]


def _median(events: list[dict[str, Any]], name: str) -> float:
    return statistics.median(float(event[name]) for event in events)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures how much of a hand-off hides behind the computation of its prompt.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help=f"{QUICK_PROMPTS} prompts, within a minute")
    add("--prompts", type=int, default=40, metavar="N", help="prompts for each cluster (default: 40)")
    add("--prompt-tokens", type=int, default=3072, metavar="N", help="length of a prompt (default: 3072)")
    add("--chunk-tokens", type=int, default=512, metavar="N", help="of the chunked cluster (default: 512)")
    add("--vocab", type=int, default=3072, metavar="N", help="token ids are below this (default: 3072)")
    add("--model", type=Path, metavar="FOLDER", help="model folder (default: the demo model)")
    add("--transport", default="auto", metavar="NAME", help="KV transport (default: auto)")
    add("--threads", type=int, default=1, metavar="N", help="compute threads of each worker (default: 1)")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


def main() -> None:
    options = parser().parse_args()
    if options.quick:
        options.prompts = QUICK_PROMPTS
    result = figures(*measure(options))
    rows.publish(result, f"{options.prompt_tokens} tokens in chunks of {options.chunk_tokens}", options.json)


if __name__ == "__main__":
    main()
