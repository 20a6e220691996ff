"""Many schedules: one after the other here, or in processes side by side with the progress shown."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed

import pytest
from campaign.pool import MAX_CHUNK_BLOCKS, PausingBlocks, Violation
from campaign.schedule import Schedule
from rich.progress import Progress

from baton.kvtransfer import block_array
from baton.kvtransfer.block_array import Blocks
from baton.kvtransfer.landing import Landing
from baton.kvtransfer.rows import Digests

BATCH = 2000


def prepare(patch: pytest.MonkeyPatch) -> None:
    """From now on every block is a chunk, and others get their turn before the bytes of a frame are digested."""
    digest = Landing.digest

    def digest_after_pause(landing: Landing, source: Blocks) -> Digests:
        assert isinstance(landing.blocks, PausingBlocks)
        landing.blocks.pause()
        return digest(landing, source)

    patch.setattr(block_array, "MAX_CHUNK_BLOCKS", MAX_CHUNK_BLOCKS)
    patch.setattr(Landing, "digest", digest_after_pause)


def run_seed(seed: int, seen: Counter[str]) -> None:
    """Raises Violation, or whatever else went wrong, with seed and trace in its notes."""
    schedule = Schedule(seed, seen)
    try:
        schedule.run()
    except Exception as error:  # of any kind: it is of no use without the seed
        error.add_note(f"seed {seed} (replay it with --campaign-seed {seed})\n{schedule.trace}")
        raise


def run_seeds(seeds: range) -> Counter[str]:
    """How often each action and each race came up."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        run_seed(seed, seen)
    return seen


def first_corruption(seeds: range) -> int | None:
    """The first seed that ends in a wrong byte; what else may be wrong is passed over."""
    for seed in seeds:
        try:
            run_seed(seed, Counter())
        except Violation as violation:
            if violation.kind == "corruption":
                return seed
    return None


def run_everywhere(seeds: range, processes: int) -> Counter[str]:
    """As `run_seeds`, in so many processes; the first failure ends it."""
    context = multiprocessing.get_context("forkserver")
    batches = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
    seen: Counter[str] = Counter()
    with ProcessPoolExecutor(processes, context, _start) as pool, Progress() as progress:
        is_terminal = progress.console.is_terminal
        bar = progress.add_task("schedules", total=len(seeds), visible=is_terminal)
        futures = [pool.submit(run_seeds, batch) for batch in batches]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                seen += future.result()
                progress.advance(bar, BATCH)
                if not is_terminal and count % 10 == 0:
                    print(f"{count * BATCH} of {len(seeds)} schedules", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return seen


def _start() -> None:
    """In a fresh process: what was imported stays for good, so the collector need not look at it again."""
    prepare(pytest.MonkeyPatch())
    gc.collect()
    gc.freeze()
