"""A prefill and a decode scheduler over real engines and a real loopback hand-off, stepped by hand.

All on one thread: what the transfer agents report from theirs is kept until `drain` runs it. A `Ride` is one
request; the test, or `advance`, plays its router.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from baton.decode.limits import DecodeLimits
from baton.decode.scheduler import DecodeScheduler
from baton.decode.work import Grant, Report, Work
from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.engine_config import EngineConfig
from baton.engine.sequence import Sequence
from baton.errors import BatonError
from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import KVLayout, KVMemory
from baton.prefill.prompt import HandoffReport, Prompt
from baton.prefill.scheduler import PrefillLimits, PrefillScheduler
from baton.request import GenerationRequest, SamplingParams, TokenOutput

BLOCK_SIZE = 4
WAIT_S = 10.0
SECRET = b"the fleet's secret"
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)

_numbers = itertools.count()


def make_engine(folder: Path, kv_blocks: int, block_size: int = BLOCK_SIZE, dtype: str = "float32") -> Engine:
    return Engine(EngineConfig(folder, dtype=dtype, block_size=block_size, kv_blocks=kv_blocks, threads=1))


def make_agent(engine: Engine) -> TransferAgent:
    model = engine.model
    layout = KVLayout(
        model=model.fingerprint,
        dtype=model.dtype_name,
        block_size=engine.block_size,
        layers=model.num_layers,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
    )
    return TransferAgent(KVMemory(engine.pool.bytes_view, engine.pool.fd), layout, SECRET, ("loopback",))


def request(prompt: Iterable[int], sampling: SamplingParams = GREEDY, **fields: Any) -> GenerationRequest:
    name = f"request-{next(_numbers)}"
    defaults: dict[str, Any] = {"request_id": name, "token_ids": tuple(prompt), "sampling": sampling}
    return GenerationRequest(**defaults | fields)


def undisturbed(engine: Engine, asked: GenerationRequest) -> list[list[int]]:
    """The tokens of each choice, alone in the engine, from an empty cache; leaves the pool as it was."""
    answers = []
    for choice in range(asked.n):
        sequence = engine.new_sequence(asked, choice)
        engine.grow(sequence, len(asked.token_ids))
        finish_reason = None
        while finish_reason is None:
            engine.grow(sequence, len(sequence.token_ids))
            [(_, output)] = engine.run([Chunk(sequence, sequence.pending_tokens, (sequence,))])
            finish_reason = output.finish_reason
        answers.append(sequence.token_ids[sequence.prompt_tokens :])
        engine.free(sequence)
        engine.blocks.clear_cache()
    return answers


class Ride:
    """One request and all that its listeners have heard, as the router would."""

    def __init__(self, pair: Pair, asked: GenerationRequest, router_id: str, is_local: bool) -> None:
        self.request = asked
        self.prompt = Prompt(asked, _sequences(pair.prefill_engine, asked), self)
        choices = _sequences(pair.decode_engine, asked)
        self.work = Work(asked, router_id, choices, is_local, self._on_grant)
        self.scheduled: list[int] = []
        self.first_outputs: list[TokenOutput] | None = None
        self.handed_off: list[HandoffReport] = []
        self.prefill_failures: list[BatonError] = []
        self.grants: list[Grant | BatonError] = []
        self.decode_failures: list[BatonError] = []
        self.outputs: list[list[TokenOutput]] = [[] for _ in range(asked.n)]
        self.is_asked = self.is_attached = self.is_started = self.is_released = False

    def on_scheduled(self, cached_tokens: int) -> None:
        self.scheduled.append(cached_tokens)

    def on_first_tokens(self, outputs: list[TokenOutput]) -> None:
        assert self.first_outputs is None, "the first tokens came twice"
        self.first_outputs = outputs
        for output in outputs:
            self.take(output)

    def on_handed_off(self, report: HandoffReport) -> None:
        self.handed_off.append(report)

    def on_failed(self, error: BatonError) -> None:
        self.prefill_failures.append(error)

    def _on_grant(self, outcome: Grant | BatonError) -> None:
        self.grants.append(outcome)

    def take(self, output: TokenOutput) -> None:
        got = self.outputs[output.choice]
        assert output.token.index == self.request.generated_tokens + len(got), "a gap or a repeat"
        assert not got or got[-1].finish_reason is None, "a token after the last one"
        got.append(output)

    @property
    def grant(self) -> Grant | None:
        return self.grants[0] if self.grants and isinstance(self.grants[0], Grant) else None

    @property
    def failures(self) -> list[BatonError]:
        refused = [outcome for outcome in self.grants if isinstance(outcome, BatonError)]
        return self.prefill_failures + refused + self.decode_failures

    @property
    def tokens(self) -> list[list[int]]:
        return [[output.token.token_id for output in outputs] for outputs in self.outputs]

    @property
    def going_on(self) -> list[TokenOutput]:
        return [output for output in self.first_outputs or [] if output.finish_reason is None]

    @property
    def is_finished(self) -> bool:
        return all(outputs and outputs[-1].finish_reason is not None for outputs in self.outputs)

    @property
    def has_ended(self) -> bool:
        return bool(self.failures) or self.is_released or self.is_finished


class Pair:
    """One worker of each role. `reports` counts the steps in which each request got tokens."""

    def __init__(
        self,
        prefill_engine: Engine,
        decode_engine: Engine,
        prefill: PrefillLimits | None = None,
        decode: DecodeLimits | None = None,
    ) -> None:
        self.prefill_engine, self.decode_engine = prefill_engine, decode_engine
        self.prefill_agent, self.decode_agent = make_agent(prefill_engine), make_agent(decode_engine)
        self.prefill = PrefillScheduler(prefill_engine, self.prefill_agent, prefill or PrefillLimits())
        self.decode = DecodeScheduler(
            decode_engine, self.decode_agent, decode or DecodeLimits(), self.post, self._on_reports
        )
        self.rides: dict[str, Ride] = {}
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def ride(
        self,
        prompt: Iterable[int],
        sampling: SamplingParams = GREEDY,
        router_id: str = "router",
        is_local: bool = False,
        **fields: Any,
    ) -> Ride:
        asked = request(prompt, sampling, **fields)
        ride = self.rides[asked.request_id] = Ride(self, asked, router_id, is_local)
        return ride

    # --- what the router does, one thing at a time ---------------------------------------------------------

    def submit(self, ride: Ride) -> None:
        if ride.work.is_local:
            self.ask(ride)
        else:
            self.prefill.submit(ride.prompt)

    def ask(self, ride: Ride) -> None:
        ride.is_asked = True
        self.decode.submit(ride.work)

    def attach(self, ride: Ride) -> None:
        assert ride.grant is not None
        ride.is_attached = True
        session = self.prefill_agent.open(
            ride.grant.ticket,
            lambda result: self.post(lambda: self.prefill.transfer_ended(ride.prompt, result)),
        )
        self.prefill.attach(ride.prompt, session)

    def start(self, ride: Ride) -> None:
        ride.is_started = True
        self.decode.start(ride.request.request_id, ride.going_on)

    def release(self, ride: Ride) -> None:
        """What leaving the request's context does, on both sides."""
        ride.is_released = True
        self.prefill.cancel(ride.prompt)
        self.decode.release(ride.request.request_id, [])

    def advance(self, ride: Ride) -> None:
        """The router's next act for this request, if it has one."""
        if ride.failures or (ride.is_finished and not ride.going_on):
            self.prefill.cancel(ride.prompt)
            self.decode.release(ride.request.request_id, [])
        elif ride.work.is_local:
            return
        elif ride.scheduled and not ride.is_asked:
            self.ask(ride)
        elif ride.grant is not None and not ride.is_attached:
            self.attach(ride)
        elif ride.first_outputs is not None and not ride.is_started:
            self.start(ride)

    # --- time goes on --------------------------------------------------------------------------------------

    def post(self, command: Callable[[], None]) -> None:
        self._posted.put(command)

    def drain(self, wait_s: float = 0.0) -> bool:
        """Runs what was posted; with `wait_s`, waits that long for the first. False where there was nothing."""
        try:
            command = self._posted.get(timeout=wait_s) if wait_s else self._posted.get_nowait()
        except queue.Empty:
            return False
        command()
        while not self._posted.empty():
            self._posted.get()()
        return True

    def step(self) -> bool:
        self.drain()
        did_prefill = self.prefill.step()
        return self.decode.step() or did_prefill

    def run_until(self, condition: Callable[[], bool], rides: Iterable[Ride] = ()) -> None:
        """Steps both, playing the router of `rides`; fails where nothing happens any more before the end."""
        while not condition():
            before = [self._progress(ride) for ride in rides]
            for ride in rides:
                self.advance(ride)
            is_moving = self.step() or before != [self._progress(ride) for ride in rides]
            if not is_moving and not condition():
                assert self.drain(WAIT_S) or condition(), f"nothing happens any more: {self._standing()}"

    def finish(self, *rides: Ride) -> None:
        """From submission to the end of all, both pools at their baseline."""
        for ride in rides:
            self.submit(ride)
        self.run_until(lambda: all(ride.has_ended for ride in rides) and self.is_at_baseline, rides)

    @property
    def is_at_baseline(self) -> bool:
        usages = [engine.blocks.usage() for engine in (self.prefill_engine, self.decode_engine)]
        stats = [agent.stats() for agent in (self.prefill_agent, self.decode_agent)]
        return not any(usage.used + usage.reserved for usage in usages) and not any(
            stat.open_sends + stat.open_receives for stat in stats
        )

    def close(self) -> None:
        for scheduler in (self.prefill, self.decode):
            scheduler.close()
        for agent in (self.prefill_agent, self.decode_agent):
            agent.close()
        for engine in (self.prefill_engine, self.decode_engine):
            assert engine.blocks.usage().used + engine.blocks.usage().reserved == 0
            engine.blocks.clear_cache()

    def _on_reports(self, reports: list[Report]) -> None:
        for report in reports:
            ride = self.rides[report.request_id]
            if ride.is_released:
                continue
            for output in report.outputs:
                ride.take(output)
            if report.failure is not None:
                ride.decode_failures.append(report.failure)

    def _standing(self) -> str:
        rides = [(*self._progress(ride), ride.is_released, ride.failures) for ride in self.rides.values()]
        agents = self.prefill_agent.stats(), self.decode_agent.stats()
        return f"{rides}, {self.prefill.load()}, {self.decode.load()}, {agents}"

    def _progress(self, ride: Ride) -> tuple[bool, ...]:
        heard = bool(ride.scheduled), bool(ride.grants), ride.first_outputs is not None
        return (*heard, ride.is_asked, ride.is_attached, ride.is_started, ride.has_ended)


def _sequences(engine: Engine, asked: GenerationRequest) -> list[Sequence]:
    return [engine.new_sequence(asked, choice) for choice in range(asked.n)]
