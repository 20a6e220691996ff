"""Where requests wait for their turn, or learn that it will not come: `admission` decides, this waits and tells.

What becomes of an admitted request it hears from the event stream, as the metrics do.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from baton.errors import BatonError, Overloaded, QueueTimeout, SloUnattainable
from baton.events import Event, EventStream
from baton.lifecycle import Transition
from baton.request import TokenOutput
from baton.router.admission import Admission, AdmissionLimits, Capacity, SloPolicy
from baton.router.fair_queue import Entry
from baton.router.run import Run


@dataclass(frozen=True, slots=True)
class EntranceLimits:
    """queue_timeout_s: of waiting here."""

    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    queue_timeout_s: float = 60.0
    slo_policy: SloPolicy = SloPolicy.NONE


class Entrance:
    """One object a router, on its event loop."""

    def __init__(
        self,
        limits: EntranceLimits,
        capacity: Callable[[], Capacity],
        predict_ttft_s: Callable[[Run], float],
        events: EventStream,
    ) -> None:
        """predict_ttft_s: of a request that were placed now; 0 where it could not be."""
        self._limits = limits
        self._capacity = capacity
        self._predict_ttft_s = predict_ttft_s
        self._admission = Admission(limits.admission)
        self._turns: dict[Entry, asyncio.Future[Overloaded | None]] = {}
        events.subscribe(self._on_event)

    @property
    def waiting(self) -> int:
        return self._admission.waiting

    @property
    def waiting_tokens(self) -> int:
        return self._admission.waiting_tokens

    @asynccontextmanager
    async def turn(self, run: Run) -> AsyncIterator[Meter]:
        """Entered when it is the request's turn; its place is taken until the context is left.

        Raises Overloaded where the queue is full, QueueTimeout, SloUnattainable, DeadlineExceeded.
        """
        request = run.request
        entry = Entry(
            request.request_id, request.tenant, len(request.token_ids), request.priority, time.monotonic()
        )
        try:
            await self._admitted(run, entry)
            yield Meter(entry, self._admission)
        finally:
            self._admission.end(entry)
            self._pump()

    async def _admitted(self, run: Run, entry: Entry) -> None:
        try:
            wait_s = self._admission.wait_s(entry.tenant, self._capacity(), entry.arrived_at_s)
            latest_s = self._latest_start_s(run, entry, wait_s)
            turn = self._turns[entry] = asyncio.get_running_loop().create_future()
            self._admission.arrive(entry)
            self._pump()
            self._shed(entry)
            has_waited = not turn.done()
            if has_waited:
                await self._wait(run, entry, latest_s)
            if (refusal := turn.result()) is not None:
                raise refusal
            if has_waited:
                self._latest_start_s(run, entry, wait_s=0.0)
                run.life.move(Transition.ADMIT, waited_s=time.monotonic() - entry.arrived_at_s)
        except BatonError as error:
            run.life.move(Transition.REFUSE, code=error.code, reason=error.message)
            raise
        except asyncio.CancelledError:
            run.life.move(Transition.CANCEL)
            raise
        finally:
            self._turns.pop(entry, None)

    async def _wait(self, run: Run, entry: Entry, latest_start_s: float) -> None:
        """Until the entry's turn, the end of the queue's patience, or of the objective's."""
        until_s = min(latest_start_s, entry.arrived_at_s + self._limits.queue_timeout_s)
        limit = asyncio.timeout(until_s - time.monotonic())
        try:
            async with run.deadline(), limit:
                await self._turns[entry]
        except TimeoutError:
            if not limit.expired():
                raise
            waited = f"the request's turn did not come within {until_s - entry.arrived_at_s:.3g} s"
            if until_s == latest_start_s:
                message = f"{waited}, so its TTFT objective is missed"
                raise SloUnattainable(message, retry_after_s=self._drain_s()) from None
            raise QueueTimeout(f"{waited}, the limit") from None

    def _latest_start_s(self, run: Run, entry: Entry, wait_s: float) -> float:
        """When the request has to be at its worker, on the monotonic clock, for its objective to be met. Raises
        SloUnattainable where it cannot be, waiting `wait_s` more."""
        objective_s = run.request.objectives.ttft_s
        if objective_s is None or self._limits.slo_policy is SloPolicy.NONE:
            return math.inf
        now_s, worker_s = time.monotonic(), self._predict_ttft_s(run)
        predicted_s = now_s - entry.arrived_at_s + wait_s + worker_s
        if predicted_s > objective_s:
            raise SloUnattainable(
                f"the first token is predicted after {predicted_s:.3g} s, the objective is {objective_s:g} s",
                field="x-slo-ttft-ms",
                retry_after_s=predicted_s - objective_s,
            )
        return entry.arrived_at_s + objective_s - worker_s

    def _shed(self, newest: Entry) -> None:
        """Refuses whoever has no place in the queue; that may be another than the newest."""
        entry = self._admission.shed(newest)
        if entry is not None:
            message = f"{self._limits.admission.max_waiting} requests are waiting, the limit"
            self._tell(entry, Overloaded(message, retry_after_s=self._drain_s()))

    def _drain_s(self) -> float:
        """Until those who wait now are gone, one way or another."""
        return min(self._admission.drain_s(time.monotonic()), self._limits.queue_timeout_s)

    def _pump(self) -> None:
        if self._admission.waiting:
            for entry in self._admission.admit(self._capacity(), time.monotonic()):
                self._tell(entry, None)

    def _tell(self, entry: Entry, refusal: Overloaded | None) -> None:
        """Whoever has given up by itself is about to leave, and hears nothing."""
        turn = self._turns[entry]
        if not turn.done():
            turn.set_result(refusal)

    def _on_event(self, event: Event) -> None:
        match event.transition:
            case Transition.PLACE:
                terms = (event.attributes[f"predicted_{term}_s"] for term in ("prefill", "reserve"))
                self._admission.placed(event.request_id, max(float(term) for term in terms))
            case Transition.FIRST_TOKENS | Transition.DECODE_LOCALLY:
                self._admission.computed(event.request_id)
                self._pump()


class Meter:
    """Counts what an admitted request is served."""

    def __init__(self, entry: Entry, admission: Admission) -> None:
        self._entry = entry
        self._admission = admission

    async def over(self, tokens: AsyncGenerator[TokenOutput, None]) -> AsyncGenerator[TokenOutput, None]:
        async with aclosing(tokens):
            async for output in tokens:
                self._admission.served(self._entry, 1)
                yield output
