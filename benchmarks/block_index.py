"""Measures the router's index of who holds which block: how long a prompt's match takes, what a block costs in
memory, and whether both stay the same while blocks come and go.

`python benchmarks/block_index.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rows
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID
from rows import Row

from baton.router.compiled import is_native_built
from baton.router.prefix_index import PrefixIndex

EXAMPLES = """
examples:
  python benchmarks/block_index.py --quick
  python benchmarks/block_index.py --pairs 10000000 --churn 100000000 --json index.json

what is measured:
  the index is filled with --pairs blocks, random ones of one worker each, and asked for prompts of 512 blocks (8k
  tokens) of which one worker, 64 or all 1,000 hold every block; one match answers for all workers. Then --churn
  more blocks come, and as many go, and the same is asked again. Memory is what the process takes more than before
  (resident set).
"""
PROMPT_BLOCKS = 512
WORKERS = 1000
BATCH_BLOCKS = 4096
QUICK_PAIRS, QUICK_CHURN = 1_000_000, 3_000_000
US, MB = 1e6, 1e-6
PROBES, MAX_PROMPTS = 4000, 2048

Blocks = NDArray[np.void]
"""[n] hashes of 16 bytes."""


class Filler:
    """Random blocks on workers in turn, a batch each."""

    def __init__(self, index: PrefixIndex, seed: int) -> None:
        self._index = index
        self._random = np.random.Generator(np.random.SFC64(seed))
        self._turn = 0

    def batch(self) -> Blocks:
        return np.frombuffer(self._random.bytes(BATCH_BLOCKS * 16), "V16")

    def store(self, blocks: int, on_batch: Callable[[int], None], is_removed: bool = False) -> float:
        """Stores that many; with `is_removed`, every other batch goes again by an event instead of by the limit.
        Returns the processor's seconds inside the index."""
        spent_s = 0.0
        for _ in range(0, blocks, BATCH_BLOCKS):
            worker_id = f"w{self._turn % WORKERS}"
            packed = self.batch().tobytes()
            started_s = time.thread_time()
            self._index.store(worker_id, packed)
            if is_removed and self._turn % 2:
                self._index.remove(worker_id, packed)
            spent_s += time.thread_time() - started_s
            self._turn += 1
            on_batch(BATCH_BLOCKS)
        return spent_s


def probe_prompts(index: PrefixIndex, random: np.random.Generator, workers: int) -> list[bytes]:
    """Prompts of new blocks that `workers` hold; where these are few, more prompts than processors' caches take."""
    fitting = index.stats().pairs // 4 // (PROMPT_BLOCKS * workers)
    prompts = [random.bytes(PROMPT_BLOCKS * 16) for _ in range(min(MAX_PROMPTS, max(1, fitting)))]
    for prompt in prompts:
        for number in range(workers):
            index.store(f"w{number}", prompt)
    return prompts


def match_us(index: PrefixIndex, prompts: Sequence[bytes]) -> tuple[float, float]:
    """Median and 99th percentile of one match."""
    spent_s = []
    for number in range(PROBES):
        prompt = prompts[number % len(prompts)]
        started_s = time.perf_counter()
        index.match_all(prompt)
        spent_s.append(time.perf_counter() - started_s)
    median, p99 = np.percentile(spent_s, [50, 99])
    return float(median) * US, float(p99) * US


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measure(pairs: int, churn: int, progress: Progress) -> list[Row]:
    before_bytes = resident_bytes()
    index = PrefixIndex(pairs)
    filler = Filler(index, seed=1)
    result = []
    filled_s = filler.store(pairs, _bar(progress, f"filling with {pairs:,}", pairs))
    result.append(Row(name="store, table filling", value=filled_s / pairs * US * 1000, unit="ns/block"))
    full_bytes = resident_bytes() - before_bytes
    result.append(Row(name=f"memory, {pairs:,} blocks", value=full_bytes * MB, unit="MB", target=2000))
    result += probe(index, "full", seed=2)
    spent_s = filler.store(churn, _bar(progress, f"churn of {churn:,}", churn), is_removed=True)
    stored_and_removed = churn * 1.5
    result.append(
        Row(
            name="store, evict or remove, full",
            value=spent_s / stored_and_removed * US * 1000,
            unit="ns/block",
        )
    )
    churned_bytes = resident_bytes() - before_bytes
    result.append(
        Row(
            name=f"memory after {churn:,} more, to before",
            value=churned_bytes / full_bytes,
            unit="x",
            target=1.1,
        )
    )
    return result + probe(index, "after churn", seed=3)


def probe(index: PrefixIndex, state: str, seed: int) -> list[Row]:
    random = np.random.default_rng(seed)
    result = []
    for workers in (1, 64, WORKERS):
        median, p99 = match_us(index, probe_prompts(index, random, workers))
        name = f"match 512 blocks, {workers:,} hold them, {state}"
        result += [
            Row(name=f"{name}: median", value=median, unit="us"),
            Row(name=f"{name}: p99", value=p99, unit="us"),
        ]
    return result


def _bar(progress: Progress, text: str, total: int) -> Callable[[int], None]:
    task: TaskID = progress.add_task(text, total=total)
    return lambda done: progress.advance(task, done)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10_000_000, help="limit of the index (default 10^7)")
    parser.add_argument("--churn", type=int, default=100_000_000, help="blocks stored then (default 10^8)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS:,} and {QUICK_CHURN:,} blocks")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.churn = QUICK_PAIRS, QUICK_CHURN
    if min(options.pairs, options.churn) < BATCH_BLOCKS:
        parser.error(f"--pairs and --churn: at least {BATCH_BLOCKS}")
    console = Console(stderr=True)
    console.print("native index" if is_native_built() else "index in plain Python: nothing native was built")
    with Progress(console=console) as progress:
        figures = measure(options.pairs, options.churn, progress)
    rows.publish(figures, "Index of who holds which block", options.json)


if __name__ == "__main__":
    main()
