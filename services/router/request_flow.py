"""The whole life of a request, top to bottom:

    place -> lease workers -> prefill's turn comes -> decode reserves -> prefill runs and pushes -> decode streams

Leaving `run`, for whatever reason, releases everything on all three sides: each leg is a context that tells its
worker. A leg that fails before the client has seen a token is tried once more elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from baton.errors import HandoffFailed, Unavailable, WorkerFailed
from baton.events import EventStream
from baton.lifecycle import Transition
from baton.request import GenerationRequest, TokenOutput
from baton.router.admission import AdmissionLimits, SloPolicy
from baton.router.entrance import Entrance, EntranceLimits
from baton.router.handoff_metrics import timeline
from baton.router.placement import Placement, Refusal, place
from baton.router.policies import DEFAULT_POLICY, load_policy
from baton.router.run import Run
from baton.router.snapshot import Demand
from baton.router.workers import Lease, Workers

_RETRYABLE = (HandoffFailed, WorkerFailed, Unavailable)


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """max_requests: at the workers at once. max_waiting: in the router's queue, more are refused with 429; see
    `entrance`. slo_policy: see `SloPolicy`. queue_timeout_s: until a request's turn comes, here and at its worker.
    attempts: placements tried for one request. local_prefill_tokens: see `snapshot.Demand`. policy: how pairs
    are chosen, by name. seed: of policies that leave something to
    chance; another one for each router, lest all draw alike."""

    max_requests: int = 1024
    max_waiting: int = 512
    slo_policy: SloPolicy = SloPolicy.NONE
    queue_timeout_s: float = 60.0
    attempts: int = 2
    local_prefill_tokens: int = 64
    policy: str = DEFAULT_POLICY
    seed: int = field(default_factory=lambda: secrets.randbits(63))


class RequestFlow:
    """Runs requests over the fleet; one object a router. Raises ConfigError for a policy that does not exist."""

    def __init__(self, workers: Workers, events: EventStream, limits: FlowLimits) -> None:
        self._workers = workers
        self._events = events
        self._limits = limits
        self._policy = load_policy(limits.policy)
        self._placements = 0
        self._entrance = Entrance(
            EntranceLimits(
                AdmissionLimits(limits.max_requests, limits.max_waiting),
                limits.queue_timeout_s,
                limits.slo_policy,
            ),
            workers.prompt_capacity,
            self._predicted_ttft_s,
            events,
        )

    @property
    def waiting(self) -> int:
        """Requests in the router's queue."""
        return self._entrance.waiting

    @asynccontextmanager
    async def start(self, request: GenerationRequest) -> AsyncIterator[Run]:
        """One request; leaving the context ends it wherever it is. On entering waits for the request's turn, and
        raises what `Entrance.turn` does."""
        run = Run(request, self._workers.hashes(request), self._events)
        async with self._entrance.turn(run) as meter, run.over(meter.over(self._tokens(run))):
            yield run

    async def _tokens(self, run: Run) -> AsyncGenerator[TokenOutput, None]:
        """Every token of every choice, or the BatonError that the client has to see."""
        excluded: set[str] = set()
        for attempt in range(1, self._limits.attempts + 1):
            placement = self._place(run, excluded)
            request = replace(run.request, request_id=f"{run.request.request_id}.{attempt}")
            is_first = True
            try:
                with self._workers.lease(placement, request) as lease:
                    serve = self._local if lease.prefill is None else self._disaggregated
                    legs = serve(run, request, lease)
                    async with aclosing(legs):
                        async for output in legs:
                            is_first = False
                            yield output
                return
            except _RETRYABLE as error:
                if not is_first or attempt == self._limits.attempts:
                    raise
                excluded |= {worker_id for worker_id in (placement.prefill, placement.decode) if worker_id}
                run.life.move(Transition.RETRY, code=error.code, reason=error.message)

    def _predicted_ttft_s(self, run: Run) -> float:
        placement = self._choose(run, set())
        return placement.prediction.ttft_s if isinstance(placement, Placement) else 0.0

    def _choose(self, run: Run, excluded: set[str]) -> Placement | Refusal:
        request, hashes = run.request, run.hashes
        snapshot = self._workers.snapshot(hashes, excluded)
        if not snapshot.decode:  # better a worker that has just failed than none
            snapshot = replace(snapshot, decode=self._workers.snapshot(hashes, ()).decode)
        demand = Demand(
            prompt_tokens=len(request.token_ids),
            blocks=self._workers.blocks_for(len(request.token_ids)),
            choices=request.n,
            session_key=request.session_id,
            local_prefill_tokens=self._limits.local_prefill_tokens,
            ordinal=self._placements,
            seed=self._limits.seed,
        )
        self._placements += 1
        return place(snapshot, demand, self._policy)

    def _place(self, run: Run, excluded: set[str]) -> Placement:
        request, hashes = run.request, run.hashes
        placement = self._choose(run, excluded)
        if isinstance(placement, Refusal):
            run.life.move(Transition.REFUSE, code=Unavailable.code, reason=placement.reason)
            raise Unavailable(placement.reason)
        if placement.prefill is not None:  # who queues behind it will find it computed
            self._workers.note_cached(placement.prefill, hashes)
        run.route.prefill_worker = placement.prefill or "local"
        run.route.decode_worker = placement.decode
        run.route.reasons = list(placement.reasons)
        run.life.move(
            Transition.PLACE,
            prefill=run.route.prefill_worker,
            decode=placement.decode,
            prompt_tokens=len(request.token_ids),
            **run.predicted(placement.prediction),
        )
        return placement

    async def _disaggregated(
        self, run: Run, request: GenerationRequest, lease: Lease
    ) -> AsyncGenerator[TokenOutput, None]:
        prefill = lease.prefill
        assert prefill is not None, "a placement with a prefill worker leases one"
        async with lease.decode.attach(request) as decode, prefill.run(request, run.remaining_s()) as prompt:
            run.decode = decode
            async with run.queue_deadline(self._limits.queue_timeout_s):
                scheduled = await prompt.scheduled()
                run.life.move(Transition.SCHEDULE)
                grant = await prompt.while_alive(decode.reserve(run.remaining_s(), is_local=False))
            async with run.deadline():
                await prompt.attach(grant.ticket)
                first_outputs = await prompt.first_tokens()
            lease.prefill_done()
            run.route.cached_tokens = scheduled.cached_tokens
            run.life.move(Transition.FIRST_TOKENS, cached_tokens=scheduled.cached_tokens)
            self._workers.note_cached(prefill.worker.worker_id, run.hashes)
            for output in first_outputs:
                yield output
            going_on = [output for output in first_outputs if run.is_open(output.choice)]
            if going_on:
                async with run.deadline():
                    await decode.start(going_on)
                    report = await prompt.handed_off()
                outputs = [] if report else await run.next_outputs(decode)  # its word that all has arrived
                run.life.move(Transition.HAND_OFF, **timeline(grant, report))
                self._workers.note_cached(lease.decode.worker.worker_id, run.hashes)
                for output in outputs:
                    yield output
                while run.has_open_choices:
                    for output in await run.next_outputs(decode):
                        yield output

    async def _local(
        self, run: Run, request: GenerationRequest, lease: Lease
    ) -> AsyncGenerator[TokenOutput, None]:
        async with lease.decode.attach(request) as decode:
            run.decode = decode
            async with run.queue_deadline(self._limits.queue_timeout_s):
                grant = await decode.reserve(run.remaining_s(), is_local=True)
            run.life.move(Transition.SCHEDULE)
            first_outputs = await run.next_outputs(decode)
            lease.prefill_done()
            run.route.cached_tokens = grant.cached_tokens
            run.life.move(Transition.DECODE_LOCALLY, cached_tokens=grant.cached_tokens)
            self._workers.note_cached(lease.decode.worker.worker_id, run.hashes)
            for output in first_outputs:
                yield output
            while run.has_open_choices:
                for output in await run.next_outputs(decode):
                    yield output
