"""The whole life of a request, top to bottom:

    place -> lease workers -> prefill's turn comes -> decode reserves -> prefill runs and pushes -> decode streams

Leaving `run`, for whatever reason, releases everything on all three sides: each leg is a context that tells its
worker. Where a leg fails the request goes on elsewhere, with the prompt and the tokens that it has already: the
client sees a pause.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from baton.errors import BatonError, Unavailable, WorkerFailed
from baton.events import EventStream
from baton.lifecycle import State, Transition
from baton.request import GenerationRequest, TokenOutput
from baton.router.admission import AdmissionLimits, SloPolicy
from baton.router.attempt import Attempt
from baton.router.decode_peer import DecodeLeg
from baton.router.entrance import Entrance, EntranceLimits
from baton.router.handoff_metrics import timeline
from baton.router.hedging import HEDGED_SHARE, MOST_HEDGES, Race, may_race
from baton.router.lease import Lease
from baton.router.merging import merged
from baton.router.moving import Mover
from baton.router.part import Part
from baton.router.placement import Placement, Refusal, place
from baton.router.policies import DEFAULT_POLICY, load_policy
from baton.router.prompt_hashes import PromptHashes
from baton.router.retry_budget import RetryBudget
from baton.router.run import Run
from baton.router.snapshot import Demand, Disaggregation
from baton.router.tries import Tries
from baton.router.workers import Workers


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """max_requests: at the workers at once. max_waiting: in the router's queue; more are refused with 429.
    slo_policy: see there. queue_timeout_s: until a request's turn comes, here and again at its worker. attempts:
    placements of a request that may fail without a token between them. retry_ratio: further attempts, a request,
    on average over all. rejoin_timeout_s: of waiting for a decode worker where none is there. hedge_after_s:
    without a first token, until a second attempt is made beside the first; None: never. local_prefill_tokens,
    disaggregation: see `snapshot.Demand`. policy: how pairs are chosen, by name. seed: of policies that leave
    something to chance; another one for each router, lest all draw alike."""

    max_requests: int = 1024
    max_waiting: int = 512
    slo_policy: SloPolicy = SloPolicy.NONE
    queue_timeout_s: float = 60.0
    attempts: int = 4
    retry_ratio: float = 1.0
    rejoin_timeout_s: float = 30.0
    hedge_after_s: float | None = None
    local_prefill_tokens: int = 64
    disaggregation: Disaggregation = Disaggregation.AUTO
    policy: str = DEFAULT_POLICY
    seed: int = field(default_factory=lambda: secrets.randbits(63))


class RequestFlow:
    """Runs requests over the fleet; one object a router. Raises ConfigError for a policy that does not exist."""

    def __init__(self, workers: Workers, events: EventStream, limits: FlowLimits) -> None:
        self._workers = workers
        self._events = events
        self._limits = limits
        self._policy = load_policy(limits.policy)
        self._retries = RetryBudget(limits.retry_ratio, limits.max_requests)
        self._hedges = RetryBudget(HEDGED_SHARE, MOST_HEDGES)
        self._placements = 0
        self._under_way = 0
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

    @property
    def waiting_tokens(self) -> int:
        """Of their prompts."""
        return self._entrance.waiting_tokens

    @property
    def under_way(self) -> int:
        """Requests that have not ended, those in the queue included."""
        return self._under_way

    @asynccontextmanager
    async def start(self, request: GenerationRequest) -> AsyncIterator[Run]:
        """One request; leaving the context ends it wherever it is. On entering waits for the request's turn, and
        raises what `Entrance.turn` does."""
        run = Run(request, PromptHashes(request.token_ids, request.cache_salt), self._events)
        self._under_way += 1
        try:
            async with self._entrance.turn(run) as meter:
                self._retries.earn()
                self._hedges.earn()
                tries = Tries(self._limits.attempts, self._retries)
                async with run.over(meter.over(self._tokens(run, run.whole, tries))):
                    yield run
        finally:
            self._under_way -= 1

    async def _tokens(self, run: Run, part: Part, tries: Tries) -> AsyncGenerator[TokenOutput, None]:
        """Every token of a part's choices, from as many workers as it takes, or the BatonError for the client."""
        while True:
            attempt = await self._placed(run, part, tries)
            try:
                async with aclosing(self._outputs(attempt, tries)) as outputs:
                    async for output in outputs:
                        yield output
                if not part.is_open:
                    return
                raise WorkerFailed("the workers stopped before every choice had an ending")
            except BatonError as error:
                tries.failed(part, attempt.suspects, error)
                if not part.has_begun:
                    run.life.move(Transition.RETRY, code=error.code, reason=error.message)
            if part.has_begun and not part.is_single:
                break
            await run.pause(tries.pause_s)
        each = [self._tokens(run, single, tries.of_each_choice()) for single in run.split(part)]
        async with aclosing(merged(each)) as outputs:
            async for output in outputs:
                yield output

    async def _placed(self, run: Run, part: Part, tries: Tries) -> Attempt:
        """On a pair of workers; where no decode worker is there, the first that comes in time."""
        request = run.attempt(part)
        hashes = PromptHashes(request.token_ids, request.cache_salt) if part.has_begun else run.hashes
        limit = asyncio.timeout(self._limits.rejoin_timeout_s)
        try:
            async with run.deadline(), limit:
                while isinstance(placement := self._place(run, request, hashes, tries.excluded), Refusal):
                    refusal = placement
                    await self._workers.changed()
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._refused(run, refusal) from None
        run.placed(part, request, placement, tries.last)
        return Attempt(run, part, request, hashes, placement)

    def _refused(self, run: Run, refusal: Refusal) -> Unavailable:
        if run.life.state is State.RECEIVED:
            run.life.move(Transition.REFUSE, code=Unavailable.code, reason=refusal.reason)
        return Unavailable(refusal.reason)

    def _place(
        self, run: Run, request: GenerationRequest, hashes: PromptHashes, excluded: frozenset[str]
    ) -> Placement | Refusal:
        snapshot = self._workers.snapshot(hashes, excluded | self._workers.doubtful())
        if not len(snapshot.decode):  # better a worker that has just failed, or is silent, than none
            snapshot = replace(snapshot, decode=self._workers.snapshot(hashes, ()).decode)
        demand = Demand(
            prompt_tokens=len(request.token_ids),
            blocks=self._workers.blocks_for(len(request.token_ids)),
            choices=request.n,
            waited_s=run.age_s,
            session_key=request.session_id,
            local_prefill_tokens=self._limits.local_prefill_tokens,
            ttft_s=request.objectives.ttft_s,
            tpot_s=request.objectives.tpot_s,
            disaggregation=self._limits.disaggregation,
            ordinal=self._placements,
            seed=self._limits.seed,
        )
        self._placements += 1
        return place(snapshot, demand, self._policy)

    def _predicted_ttft_s(self, run: Run) -> float:
        placement = self._place(run, run.request, run.hashes, frozenset())
        return placement.prediction.ttft_s if isinstance(placement, Placement) else 0.0

    def _outputs(self, attempt: Attempt, tries: Tries) -> AsyncGenerator[TokenOutput, None]:
        """Of this attempt, or of one that is made beside it and answers sooner."""
        if self._limits.hedge_after_s is None or attempt.part.has_begun:
            return self._served(attempt)
        race = Race(self._begun, lambda first: self._rival(first, tries))
        return race.outputs(attempt, self._limits.hedge_after_s)

    def _rival(self, first: Attempt, tries: Tries) -> Attempt | None:
        """Another pair's attempt, where there is one and the budget of such attempts has room."""
        run, request = first.run, first.run.attempt(first.part)
        placement = self._place(run, request, first.hashes, tries.excluded | first.placement.workers)
        if (
            isinstance(placement, Refusal)
            or not may_race(placement, first.placement)
            or not self._hedges.spend()
        ):
            return None
        tries.excluded |= placement.workers
        run.hedged(placement)
        first.rival = Attempt(run, first.part, request, first.hashes, placement, is_rival=True)
        return first.rival

    async def _served(self, attempt: Attempt) -> AsyncGenerator[TokenOutput, None]:
        outputs, hold = self._begun(attempt)
        with hold:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output

    def _begun(self, attempt: Attempt) -> tuple[AsyncGenerator[TokenOutput, None], ExitStack]:
        """Its workers are leased at once: who is placed next is to see it."""
        hold = ExitStack()
        lease = self._workers.lease(attempt.placement, attempt.request, attempt.hashes)
        return self._legs(attempt, hold.enter_context(lease)), hold

    async def _legs(self, attempt: Attempt, lease: Lease) -> AsyncGenerator[TokenOutput, None]:
        serve = self._local if lease.prefill is None else self._disaggregated
        async with aclosing(serve(attempt, lease)) as outputs:
            async for output in outputs:
                yield attempt.part.take(output)

    async def _disaggregated(self, attempt: Attempt, lease: Lease) -> AsyncGenerator[TokenOutput, None]:
        run, part, request, prefill = attempt.run, attempt.part, attempt.request, lease.prefill
        assert prefill is not None, "a placement with a prefill worker leases one"
        first_leg = prefill.run(request, run.remaining_s(), run.waited_s)
        async with lease.decode.attach(request) as decode, first_leg as prompt:
            attempt.decodes_at(decode)
            async with run.turn(part, self._limits.queue_timeout_s):
                scheduled = await prompt.scheduled()
                lease.scheduled()
                attempt.progress(Transition.SCHEDULE)
                grant = await prompt.while_alive(decode.reserve(run.remaining_s(), is_local=False))
            async with run.deadline():
                await prompt.attach(grant.ticket)
                first_outputs = await prompt.first_tokens()
            heard_at_s = time.monotonic()
            lease.prefill_done()
            attempt.progress(Transition.FIRST_TOKENS, cached_tokens=scheduled.cached_tokens)
            self._workers.caches.note_cached(prefill.worker.worker_id, run.hashes)
            for output in first_outputs:
                yield output
            going_on = [output for output in first_outputs if part.goes_on(output)]
            if going_on:
                async with run.deadline():
                    await decode.start(going_on)
                    start_s = time.monotonic() - heard_at_s
                    report = await prompt.handed_off(decode.heard())
                outputs = [] if report else await run.first_outputs_unreported(part, decode)
                attempt.progress(Transition.HAND_OFF, **timeline(grant, start_s, report))
                self._workers.caches.note_cached(lease.decode.worker.worker_id, run.hashes)
                for output in outputs:
                    yield output
                async with aclosing(self._stream(run, part, lease, decode)) as stream:
                    async for output in stream:
                        yield output

    async def _local(self, attempt: Attempt, lease: Lease) -> AsyncGenerator[TokenOutput, None]:
        run, part, request = attempt.run, attempt.part, attempt.request
        async with lease.decode.attach(request) as decode:
            attempt.decodes_at(decode)
            async with run.turn(part, self._limits.queue_timeout_s):
                grant = await decode.reserve(run.remaining_s(), is_local=True)
            attempt.progress(Transition.SCHEDULE)
            first_outputs = await run.next_outputs(part, decode)
            lease.prefill_done()
            attempt.progress(Transition.DECODE_LOCALLY, cached_tokens=grant.cached_tokens)
            self._workers.caches.note_cached(lease.decode.worker.worker_id, run.hashes)
            for output in first_outputs:
                yield output
            async with aclosing(self._stream(run, part, lease, decode)) as stream:
                async for output in stream:
                    yield output

    async def _stream(
        self, run: Run, part: Part, lease: Lease, leg: DecodeLeg
    ) -> AsyncGenerator[TokenOutput, None]:
        """The tokens of a part that decodes, through all its moves."""
        async with Mover.at(run, part, lease, leg, self._workers, self._another) as mover:
            while part.is_open:
                await mover.advance()
                for output in await run.next_outputs(part, mover.leg):
                    yield output

    def _another(self, run: Run, worker_id: str) -> Placement | None:
        placement = self._place(run, run.request, run.hashes, frozenset({worker_id}))
        if isinstance(placement, Refusal) or placement.decode == worker_id:
            return None
        return replace(placement, prefill=None)
