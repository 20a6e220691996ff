"""The life of a request in the simulated fleet, top to bottom as in `baton.router.request_flow`:

    arrive -> admitted -> place -> lease workers -> prefill's turn comes -> decode reserves
           -> prefill runs and pushes -> decode runs -> ended

Production code decides: admission, `place` with its policies and predictions, the prefix index, and the block
managers of both sides. Simulated are clock and compute. Left out: failures and retries, and the delay of
heartbeats: the router knows its workers' pools as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baton.fleet import Role
from baton.router.admission import Capacity
from baton.router.placement import Placement, place
from baton.router.policies import DEFAULT_POLICY, load_policy
from baton.router.prefix_index import PrefixIndex
from baton.router.snapshot import Demand, Snapshot
from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeWorker
from baton.sim.fleet_file import FleetSpec
from baton.sim.gaps import Gaps
from baton.sim.prefill_worker import PrefillWorker
from baton.sim.ride import Outcome, Ride
from baton.sim.sim_entrance import SimEntrance
from baton.sim.sim_worker import SimWorker
from baton.sim.workload import SimRequest, Workload


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment. queued_tokens: prompts' tokens before and in prefill. running: sequences on decode
    workers. kv_used: share of all decode blocks that are held."""

    at_s: float
    queued_tokens: int
    running: int
    kv_used: float


@dataclass(slots=True)
class Run:
    """All that a simulation leaves behind."""

    spec: FleetSpec
    workload: Workload
    policy: str
    seed: int
    rides: list[Ride] = field(default_factory=list)
    gaps: Gaps = field(default_factory=Gaps)
    prefill: list[PrefillWorker] = field(default_factory=list)
    decode: list[DecodeWorker] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    handoff_bytes: float = 0.0
    duration_s: float = 0.0


_SAMPLES = 400


class Simulation:
    """One run of a workload. Deterministic: the same arguments give the same run."""

    def __init__(
        self,
        spec: FleetSpec,
        workload: Workload,
        policy: str = DEFAULT_POLICY,
        seed: int = 0,
        on_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec = spec
        self._policy = load_policy(policy)
        self._seed = seed
        self._on_ended = on_ended
        self._clock = Clock()
        self._index = PrefixIndex()
        self._run = Run(spec, workload, policy, seed)
        self._block_tokens = workload.block_tokens
        self._placements = 0
        self._next_sample_s = 0.0
        self._sample_every_s = workload.requests[-1].arrival_s / _SAMPLES
        self._make_workers()
        computing = self._run.prefill or self._run.decode
        rate = sum(worker.speeds.prefill_rate for worker in computing) / len(computing)
        capacity = Capacity(len(computing), rate)
        self._entrance = SimEntrance(spec, capacity, self._clock, self._place, self._refuse)
        workers: list[SimWorker] = [*self._run.prefill, *self._run.decode]
        self._max_tokens = min(worker.blocks.num_blocks for worker in workers) * self._block_tokens

    def run(self) -> Run:
        for request in self._run.workload.requests:
            self._clock.at(request.arrival_s, lambda request=request: self._arrive(request))  # type: ignore[misc]
        self._clock.run()
        self._run.duration_s = max(
            (ride.last_token_at_s for ride in self._run.rides), default=self._clock.now_s
        )
        return self._run

    def _make_workers(self) -> None:
        spec, clock, block_tokens = self._spec, self._clock, self._block_tokens
        for pool in spec.pools:
            for number in range(pool.workers):
                worker_id = f"{pool.name}-{number}"
                if pool.role is Role.PREFILL:
                    self._run.prefill.append(
                        PrefillWorker(worker_id, pool, block_tokens, clock, spec.chunk_tokens, self)
                    )
                else:
                    self._run.decode.append(
                        DecodeWorker(
                            worker_id,
                            pool,
                            block_tokens,
                            clock,
                            spec.max_running,
                            spec.chunk_tokens,
                            self._run.gaps,
                            self,
                        )
                    )

    def _arrive(self, request: SimRequest) -> None:
        self._sample()
        ride = Ride(request, self._clock.now_s)
        self._run.rides.append(ride)
        if request.prompt_tokens + request.output_tokens > self._max_tokens:
            self._refuse(ride, Outcome.TOO_LONG)
        else:
            self._entrance.arrive(ride)

    def _place(self, ride: Ride) -> None:
        request = ride.request
        hashes = request.hashes[: request.prompt_tokens // self._block_tokens]
        demand = Demand(
            prompt_tokens=request.prompt_tokens,
            blocks=-(-request.prompt_tokens // self._block_tokens),
            session_key=request.session_key,
            local_prefill_tokens=self._spec.local_prefill_tokens,
            ordinal=self._placements,
            seed=self._seed,
        )
        self._placements += 1
        match = self._index.match
        snapshot = Snapshot(
            [worker.candidate(match(worker.worker_id, hashes)) for worker in self._run.prefill],
            [worker.candidate(match(worker.worker_id, hashes)) for worker in self._run.decode],
        )
        placement = place(snapshot, demand, self._policy)
        assert isinstance(placement, Placement), "a fleet's file names at least one decode worker"
        ride.placement = placement
        ride.decode = next(w for w in self._run.decode if w.worker_id == placement.decode)
        ride.prefill = next((w for w in self._run.prefill if w.worker_id == placement.prefill), None)
        self._lease(ride)

    def _lease(self, ride: Ride) -> None:
        assert ride.placement is not None
        assert ride.decode is not None
        computing = ride.prefill or ride.decode
        computing.lease(ride.placement.prediction)
        self._entrance.placed(ride)
        ride.decode.leased_sequences += 1
        self._clock.after(self._spec.queue_timeout_s, lambda: self._queue_timeout(ride))
        if ride.prefill is None:
            ride.decode.ask(ride)
        else:
            ride.prefill.leased_sequences += 1
            self._note_cached(ride.prefill, ride)
            ride.prefill.submit(ride)

    def scheduled(self, ride: Ride) -> None:
        """The prompt's first chunk is next: now decode memory is asked for."""
        assert ride.decode is not None
        ride.decode.ask(ride)

    def granted(self, ride: Ride) -> None:
        self._push(ride)
        if ride.is_prompt_computed:
            self.first_token(ride)

    def chunk_computed(self, ride: Ride) -> None:
        self._push(ride)
        if ride.is_prompt_computed and ride.is_granted:
            self.first_token(ride)

    def first_token(self, ride: Ride) -> None:
        assert ride.placement is not None
        ride.first_token_at_s = ride.last_token_at_s = self._clock.now_s
        computing = ride.prefill or ride.decode
        assert computing is not None
        computing.prefill_done(ride.placement.prediction)
        self._note_cached(computing, ride)
        self._entrance.computed(ride)
        if ride.prefill is None:
            return
        ride.output_tokens = 1
        if ride.request.output_tokens == 1:
            self._release_both(ride)
            self.ended(ride)
        else:
            self._clock.at(ride.prefill.acknowledged_at_s, lambda: self._handed_off(ride))

    def _handed_off(self, ride: Ride) -> None:
        assert ride.prefill is not None
        assert ride.decode is not None
        ride.prefill.leased_sequences -= 1
        ride.prefill.release(ride)
        self._note_cached(ride.decode, ride)
        ride.decode.land(ride)

    def ended(self, ride: Ride) -> None:
        assert ride.decode is not None
        ride.outcome = Outcome.FINISHED
        ride.decode.leased_sequences -= 1
        self._entrance.end(ride)
        self._on_ended()

    def _push(self, ride: Ride) -> None:
        """Sends what is computed in full blocks, or with the prompt computed all of it."""
        if not ride.is_granted or ride.prefill is None or ride.decode is None:
            return
        ready = ride.computed_tokens
        if not ride.is_prompt_computed:
            ready = ready // self._block_tokens * self._block_tokens
        if ready <= ride.pushed_tokens:
            return
        tokens = ready - ride.pushed_tokens
        ride.pushed_tokens = ready
        bytes_per_token = ride.decode.pool.hardware.kv_bytes_per_token
        bytes_per_s = min(ride.prefill.speeds.copy_bytes_per_s, ride.decode.speeds.copy_bytes_per_s)
        ride.prefill.push(tokens, bytes_per_s, bytes_per_token)
        self._run.handoff_bytes += tokens * bytes_per_token

    def _queue_timeout(self, ride: Ride) -> None:
        if ride.is_granted or ride.outcome is not None:
            return
        assert ride.decode is not None
        assert ride.placement is not None
        computing = ride.prefill or ride.decode
        computing.prefill_done(ride.placement.prediction)
        ride.decode.leased_sequences -= 1
        self._release_both(ride)
        self._entrance.end(ride)
        self._refuse(ride, Outcome.QUEUE_TIMEOUT)

    def _release_both(self, ride: Ride) -> None:
        assert ride.decode is not None
        if ride.prefill is not None:
            ride.prefill.leased_sequences -= 1
            ride.prefill.release(ride)
        ride.decode.release(ride)

    def _refuse(self, ride: Ride, outcome: Outcome) -> None:
        ride.outcome = outcome
        self._on_ended()

    def _note_cached(self, worker: SimWorker, ride: Ride) -> None:
        full = ride.request.prompt_tokens // self._block_tokens
        self._index.add(worker.worker_id, ride.request.hashes[:full], worker.blocks.num_blocks)

    def _sample(self) -> None:
        if self._clock.now_s < self._next_sample_s:
            return
        self._next_sample_s += self._sample_every_s
        decode = self._run.decode
        blocks = sum(worker.blocks.num_blocks for worker in decode)
        available = sum(worker.blocks.available for worker in decode)
        self._run.samples.append(
            Sample(
                self._clock.now_s,
                sum(worker.queued_tokens for worker in self._run.prefill),
                sum(worker.num_running for worker in decode),
                1 - available / blocks,
            )
        )
