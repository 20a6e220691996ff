"""Measures what long prompts do to the streams and the short prompts beside them, on live clusters of two cores.

`python benchmarks/interference.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rows
from live_cluster import running
from random_model import make_servable, vocabulary
from rows import Row
from token_stream import TokenTimes, stream_tokens

EXAMPLES = """
examples:
  python benchmarks/interference.py --quick
  python benchmarks/interference.py --json interference.json --plot interference.png
  python benchmarks/interference.py --up=--no-pin       # workers that may run on any core
  python benchmarks/interference.py --up=--chunk-ms=0   # steps without a limit in time

what is measured:
  8 streams decode without a pause, and a short prompt comes every 0.3 s. For a while nothing else comes;
  then long prompts come too, one after the other. ITL is between the tokens of the streams, TTFT that of
  the short prompts, both at the client. "disaggregated" is one prefill and one decode worker with a thread
  each, "colocated" one worker with two threads that does both; each is measured against its own quiet time.
"""
MS = 1000.0
STREAMS = 8
STREAM_PROMPT_TOKENS = 64
SHORT_PROMPT_TOKENS = 128
SHORT_EVERY_S = 0.3
LONG_OUTPUT_TOKENS = 2
SETTLE_S = 2.0
QUICK_PHASE_S = 8.0
ITL_TARGET = 1.3
TTFT_TARGET = 2.0


@dataclass(slots=True)
class Observed:
    """What one cluster did. quiet, loaded: when each phase began and ended, on the clock of the streams."""

    streams: list[TokenTimes] = field(default_factory=list)
    shorts: list[TokenTimes] = field(default_factory=list)
    longs: list[TokenTimes] = field(default_factory=list)
    quiet: tuple[float, float] = (0.0, 0.0)
    loaded: tuple[float, float] = (0.0, 0.0)

    def gaps_s(self, phase: tuple[float, float]) -> list[float]:
        """Of all streams, those that ended in `phase`."""
        return [gap_s for stream in self.streams for at_s, gap_s in _ends(stream) if _within(at_s, phase)]

    def short_ttfts_s(self, phase: tuple[float, float]) -> list[float]:
        """Of the short prompts that were sent in `phase`."""
        return [short.ttft_s for short in self.shorts if _within(short.sent_at_s, phase)]


def _ends(stream: TokenTimes) -> list[tuple[float, float]]:
    return list(zip(stream.token_at_s[1:], stream.gaps_s, strict=True))


def _within(at_s: float, phase: tuple[float, float]) -> bool:
    return phase[0] <= at_s < phase[1]


class Load:
    """Sends to one cluster; prompts are random, so that none is cached."""

    def __init__(self, url: str, model_vocabulary: int, options: argparse.Namespace) -> None:
        self.observed = Observed()
        self._url = url
        self._rng = np.random.default_rng(0)
        self._vocabulary = model_vocabulary
        self._options = options

    async def run(self) -> Observed:
        """Both phases, after a warm-up; what is still under way at the end is cancelled."""
        tasks = [asyncio.create_task(self._stream()) for _ in range(STREAMS)]
        tasks.append(asyncio.create_task(self._shorts()))
        try:
            await self._long()  # touches what the first long prompt touches
            self.observed.longs.clear()
            await asyncio.sleep(SETTLE_S)
            self.observed.quiet = await self._phase(asyncio.sleep(self._options.phase))
            self.observed.loaded = await self._phase(self._long_prompts())
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ended:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end
        return self.observed

    async def _phase(self, work: Awaitable[None]) -> tuple[float, float]:
        began_at_s = time.perf_counter()
        await work
        return began_at_s, time.perf_counter()

    async def _long_prompts(self) -> None:
        ends_at_s = time.perf_counter() + self._options.phase
        while time.perf_counter() < ends_at_s:
            await self._long()

    async def _long(self) -> None:
        prompt = self._prompt(self._options.long_tokens)
        self.observed.longs.append(await stream_tokens(self._url, prompt, LONG_OUTPUT_TOKENS))

    async def _stream(self) -> None:
        """One answer after another, each as long as the model goes on."""
        while True:
            times = TokenTimes(0.0)
            self.observed.streams.append(times)
            await stream_tokens(
                self._url, self._prompt(STREAM_PROMPT_TOKENS), self._options.stream_tokens, times
            )

    async def _shorts(self) -> None:
        while True:
            await asyncio.sleep(SHORT_EVERY_S)
            prompt = self._prompt(SHORT_PROMPT_TOKENS)
            self.observed.shorts.append(await stream_tokens(self._url, prompt, 1))

    def _prompt(self, tokens: int) -> list[int]:
        prompt: list[int] = self._rng.integers(10, self._vocabulary, tokens).tolist()
        return prompt


def measure(options: argparse.Namespace) -> dict[str, Observed]:
    """Each cluster alone, one after the other."""
    kinds = {"disaggregated": ("--prefill=1", "--decode=1"), "colocated": ("--prefill=0", "--decode=1")}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder)
        if options.model is None:
            make_servable(model)
        observed = {}
        for kind, pools in kinds.items():
            flags = [f"--model={model}", f"--chunk-tokens={options.chunk_tokens}", *pools, *options.up]
            with running(flags) as url:
                observed[kind] = asyncio.run(Load(url, vocabulary(model), options).run())
    return observed


def figures(observed: dict[str, Observed]) -> list[Row]:
    result = []
    for kind, one in observed.items():
        result.append(_against_quiet(f"{kind}: ITL p99", one, Observed.gaps_s, ITL_TARGET))
        result.append(
            _against_quiet(f"{kind}: TTFT p99 of short prompts", one, Observed.short_ttfts_s, TTFT_TARGET)
        )
        long_s = [times.ttft_s for times in one.longs]
        result.append(
            Row(name=f"{kind}: TTFT p50 of long prompts", value=float(np.median(long_s)) * MS, unit="ms")
        )
    return result


Of = Callable[[Observed, tuple[float, float]], list[float]]


def _against_quiet(name: str, observed: Observed, of: Of, most: float) -> Row:
    quiet_s, loaded_s = (
        float(np.percentile(of(observed, phase), 99)) for phase in (observed.quiet, observed.loaded)
    )
    return Row(
        name=name,
        value=loaded_s * MS,
        unit="ms",
        peer="without long prompts",
        peer_value=quiet_s * MS,
        ratio=quiet_s / loaded_s,
        target=1 / most,
    )


def plot(observed: dict[str, Observed], path: Path) -> None:
    """ITL over time, the time in which each long prompt was computed shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (kind, one) in zip(
        figure.subplots(len(observed), sharex=True, sharey=True), observed.items(), strict=True
    ):
        start_s = one.quiet[0]
        for stream in one.streams:
            at_s, gap_s = np.array(_ends(stream)).T if len(stream.token_at_s) > 1 else ([], [])
            axes.plot(np.array(at_s) - start_s, np.array(gap_s) * MS, ".", markersize=1, color="tab:blue")
        for long in one.longs:
            axes.axvspan(
                long.sent_at_s - start_s, long.token_at_s[0] - start_s, alpha=0.2, color="tab:orange"
            )
        axes.set(title=kind, ylabel="ITL (ms)", yscale="log", xlim=(0, one.loaded[1] - start_s))
    axes.set_xlabel("s; orange: a long prompt is being computed")
    figure.savefig(path)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures what long prompts do to the streams and the short prompts beside them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help=f"phases of {QUICK_PHASE_S:g} s, within a minute")
    add("--phase", type=float, default=40.0, metavar="S", help="length of each phase (default: 40)")
    add("--long-tokens", type=int, default=2048, metavar="N", help="of a long prompt (default: 2048)")
    add("--stream-tokens", type=int, default=400, metavar="N", help="of a stream's answer (default: 400)")
    add("--chunk-tokens", type=int, default=512, metavar="N", help="prompt tokens a step (default: 512)")
    add("--model", type=Path, metavar="FOLDER", help="model folder (default: 12 layers of random weights)")
    add("--up", action="append", default=[], metavar="FLAG", help="further option of `baton up`; repeat")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    add("--plot", type=Path, metavar="FILE", help="draws ITL over time there, as PNG (needs matplotlib)")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.quick:
        options.phase = QUICK_PHASE_S
    observed = measure(options)
    result = figures(observed)
    rows.publish(result, f"{STREAMS} streams beside prompts of {options.long_tokens} tokens", options.json)
    if options.plot is not None:
        plot(observed, options.plot)


if __name__ == "__main__":
    main()
