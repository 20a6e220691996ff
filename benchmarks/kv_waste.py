"""How much of the KV memory that requests of a trace hold is allocated and not used.

`python benchmarks/kv_waste.py --trace FILE.jsonl`: requests of the trace run in a closed loop on the engine's block
manager, growing by the engine's rule, a block when a token needs one; no model computes. Counted after every step,
over all sequences that run: token places in their blocks, and tokens. Contiguous memory, for comparison, is what
sequences hold that each get room for the longest one of the trace.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rows
from rich.progress import Progress
from rows import Row

from baton.engine.block_manager import BlockManager

TARGET_PERCENT = 4.0


@dataclass
class Running:
    """tokens: with KV. blocks: held for them."""

    tokens: int
    last_tokens: int
    blocks: list[int]


@dataclass
class Held:
    """Token places, summed over steps: held in blocks, held in contiguous memory, and used."""

    paged: int = 0
    contiguous: int = 0
    used: int = 0


def main() -> None:
    options = parser().parse_args()
    lengths = read_trace(options.trace)[: 400 if options.quick else None]
    held = replay(lengths, options.block_size, options.running)
    found = list(figures(held))
    rows.publish(found, f"{len(lengths)} requests, blocks of {options.block_size} tokens", options.json)


def read_trace(path: Path) -> list[tuple[int, int]]:
    """Prompt and output tokens of each request."""
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["input_length"], line["output_length"]) for line in lines]


def replay(lengths: list[tuple[int, int]], block_size: int, at_once: int) -> Held:
    longest = max(prompt + output for prompt, output in lengths)
    blocks = BlockManager(at_once * -(-longest // block_size), block_size)
    waiting, running, held = deque(lengths), list[Running](), Held()
    with Progress() as progress:
        task = progress.add_task("replaying", total=len(lengths))
        while waiting or running:
            while waiting and len(running) < at_once:
                prompt, output = waiting.popleft()
                running.append(Running(prompt, prompt + output, blocks.allocate(-(-prompt // block_size))))
            step(running, blocks, block_size, held)
            held.contiguous += longest * len(running)
            ended = [each for each in running if each.tokens >= each.last_tokens]
            for each in ended:
                blocks.release(each.blocks)
            running = [each for each in running if each.tokens < each.last_tokens]
            progress.advance(task, len(ended))
    return held


def step(running: list[Running], blocks: BlockManager, block_size: int, held: Held) -> None:
    """Counts what sequences hold, then gives each a token more."""
    for each in running:
        held.paged += len(each.blocks) * block_size
        held.used += each.tokens
        each.tokens += 1
        if each.tokens > len(each.blocks) * block_size:
            each.blocks += blocks.allocate(1)


def figures(held: Held) -> Iterator[Row]:
    paged, contiguous = (100 * (1 - held.used / places) for places in (held.paged, held.contiguous))
    yield Row(name="allocated but unused", value=paged, unit="%", target=TARGET_PERCENT)
    yield Row(name="allocated but unused, contiguous", value=contiguous, unit="%")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add(
        "--trace",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON lines with input_length and output_length",
    )
    add("--quick", action="store_true", help="the first 400 requests")
    add("--block-size", type=int, default=16, metavar="N", help="tokens a block (default: 16)")
    add("--running", type=int, default=64, metavar="N", help="sequences at once (default: 64)")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


if __name__ == "__main__":
    main()
