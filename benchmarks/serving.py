"""Replays requests against any OpenAI-compatible server and measures latency, throughput and goodput.

`python benchmarks/serving.py --help` explains itself with examples.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import rows
import uvloop
from latency import Objectives, Outcome, summarize
from openai_stream import PATHS, ServerUnusable, Target, first_model, stream
from prompts import prompt_maker
from quick import parsed
from replay import replay
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from workload import MalformedTrace, PlannedRequest, TokenRange, synthetic, traced

EXAMPLES = """
examples:
  # a first look at a local server, within a minute
  python benchmarks/serving.py --url http://127.0.0.1:8000 --quick

  # 200 chats at 4 requests/s; which share of them meets both objectives?
  python benchmarks/serving.py --url http://127.0.0.1:8000 --endpoint chat --requests 200 --rate 4 \\
      --input-tokens 100:500 --output-tokens 50:150 --slo-ttft-ms 500 --slo-tpot-ms 50

  # how much a shared system prompt of 1000 tokens helps, 8 requests under way at a time
  python benchmarks/serving.py --url http://127.0.0.1:8000 --concurrency 8 \\
      --input-tokens 1200 --shared-prefix-tokens 1000

  # a recorded trace, ten times as fast, with prompts and answers a tenth as long; figures to a file
  python benchmarks/serving.py --url http://127.0.0.1:8000 --trace trace.jsonl \\
      --time-scale 0.1 --length-scale 0.1 --max-requests 500 --json serving.json

what is measured:
  ttft  from sending the request to its first text        tpot  mean time per token after the first
  itl   between consecutive pieces of text                 e2e   from sending to the end of the stream
  goodput counts the requests a second that met every objective; a failed request meets none.
  With --concurrency a request's clock starts when it is sent, not when it was due.
"""
QUICK = {
    "requests": 24,
    "concurrency": 8,
    "output_tokens": TokenRange(16, 16),
    "max_requests": 24,
    "time_scale": 0.01,
    "length_scale": 0.02,
    "max_seconds": 50.0,
}
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[failed]} failed, {task.fields[tokens]} tokens"),
    TimeElapsedColumn(),
)


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def length(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def token_range(text: str) -> TokenRange:
    low, _, high = text.partition(":")
    lengths = TokenRange(count(low), count(high or low))
    if lengths.low > lengths.high:
        raise argparse.ArgumentTypeError(f"{text} ends below its start")
    return lengths


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Replays requests against any OpenAI-compatible server; prints TTFT, TPOT, ITL, throughput "
        "and goodput.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument_group("server").add_argument
    add("--url", required=True, help="base URL, as http://127.0.0.1:8000")
    add("--model", help="model name (default: the first that /v1/models lists)")
    add("--endpoint", choices=sorted(PATHS), default="completions", help="(default: %(default)s)")
    add("--api-key", help="sent as bearer token")
    add("--timeout", type=positive, default=600.0, metavar="S", help="for one request (default: 600)")
    add("--temperature", type=float, default=0.0, help="(default: 0, greedy)")
    add(
        "--no-ignore-eos",
        action="store_true",
        help="for servers that refuse `ignore_eos`: answers may be short",
    )
    _add_workload(result)
    add = result.add_argument_group("judgement and output").add_argument
    add("--slo-ttft-ms", type=positive, metavar="MS", help="objective for the time to first token")
    add("--slo-tpot-ms", type=positive, metavar="MS", help="objective for the time per output token")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


def _add_workload(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group("load").add_argument
    add("--quick", action="store_true", help="few, short requests and at most 50 s, unless told otherwise")
    add("--requests", type=count, default=100, metavar="N", help="how many (default: 100)")
    add("--rate", type=positive, metavar="R", help="requests/s, Poisson; inf is all at once (default: inf)")
    add("--concurrency", type=count, metavar="N", help="most requests under way at once (default: no cap)")
    add("--max-seconds", type=positive, metavar="S", help="cancels what has not ended by then")
    add("--seed", type=length, default=0, help="of arrivals, lengths and prompts (default: 0)")
    add = result.add_argument_group("synthetic requests (lengths in tokens, N or LOW:HIGH)").add_argument
    add("--input-tokens", type=token_range, default=TokenRange(128, 128), metavar="N", help="(default: 128)")
    add("--output-tokens", type=token_range, default=TokenRange(64, 64), metavar="N", help="(default: 64)")
    add(
        "--shared-prefix-tokens",
        type=length,
        default=0,
        metavar="N",
        help="equal in all prompts, part of them",
    )
    add = result.add_argument_group("or a trace").add_argument
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help="Mooncake's JSONL: timestamp, input_length, output_length, hash_ids",
    )
    add("--time-scale", type=positive, default=1.0, metavar="X", help="multiplies times (default: 1)")
    add("--length-scale", type=positive, default=1.0, metavar="X", help="multiplies lengths (default: 1)")
    add("--max-requests", type=count, metavar="N", help="only the first N lines")


def planned(options: argparse.Namespace) -> list[PlannedRequest]:
    if options.trace is not None:
        return traced(options.trace, options.time_scale, options.length_scale, options.max_requests)
    return synthetic(
        requests=options.requests,
        rate=options.rate or math.inf,
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        shared_prefix_tokens=options.shared_prefix_tokens,
        seed=options.seed,
    )


async def measure(
    options: argparse.Namespace, plan: Sequence[PlannedRequest], console: Console
) -> list[Outcome]:
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=options.url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=options.timeout,
        limits=limits,
        trust_env=False,
    ) as client:
        target = Target(
            client=client,
            model=options.model or await first_model(client),
            endpoint=options.endpoint,
            timeout_s=options.timeout,
            extra={"temperature": options.temperature}
            | ({} if options.no_ignore_eos else {"ignore_eos": True}),
        )
        with console.status(f"making {len(plan)} prompts"):
            maker = await prompt_maker(target, options.seed)
            bodies = [(r.at_s, target.body(maker.make(r), r.output_tokens)) for r in plan]
        with Progress(*COLUMNS, console=console) as bar:
            task = bar.add_task(target.model, total=len(bodies), failed=0, tokens=0)
            failed = tokens = 0

            def advance(outcome: Outcome) -> None:
                nonlocal failed, tokens
                failed += outcome.error is not None
                tokens += outcome.output_tokens
                bar.update(task, advance=1, failed=failed, tokens=tokens)

            return await replay(
                bodies, lambda body: stream(target, body), options.concurrency, options.max_seconds, advance
            )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    result = parser()
    options = parsed(result, arguments, QUICK)
    if options.trace is not None and options.rate is not None:
        result.error("--rate does not go with --trace, which has its own times: use --time-scale")
    if options.json is not None and not options.json.parent.is_dir():
        result.error(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 where no request succeeded, 2 where nothing could be sent."""
    options = parse(arguments)
    console = Console(stderr=True)
    try:
        plan = planned(options)
        outcomes = uvloop.run(measure(options, plan, console))
    except (MalformedTrace, ServerUnusable, httpx.InvalidURL, OSError) as error:
        console.print(f"serving.py: {error}", style="red", markup=False, highlight=False)
        return 2
    objectives = Objectives(
        ttft_s=options.slo_ttft_ms and options.slo_ttft_ms / 1000,
        tpot_s=options.slo_tpot_ms and options.slo_tpot_ms / 1000,
    )
    result = summarize(outcomes, objectives)
    rows.publish(result, f"{options.url}, {len(outcomes)} requests", options.json)
    without_usage = sum(outcome.error is None and not outcome.has_usage for outcome in outcomes)
    if without_usage:
        console.print(
            f"{without_usage} answers came without usage: their pieces of text were counted as tokens"
        )
    return 0 if any(outcome.error is None for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
