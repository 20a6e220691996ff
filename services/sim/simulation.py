"""The life of a request in the simulated fleet, top to bottom as in `baton.router.request_flow`:

    arrive -> admitted -> place -> lease workers -> prefill's turn comes -> decode reserves
           -> prefill runs and pushes -> decode runs -> ended

Production code decides: admission, `place` with its policies and predictions, the prefix index, the block managers
of both sides, and the planner where workers change roles, come and leave (`elastic.py`). Simulated are clock and
compute. Left out: failures and retries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from baton.router.admission import Capacity, capacity_of
from baton.router.policies import DEFAULT_POLICY
from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeWorker
from baton.sim.elastic import Elastic, Flipped
from baton.sim.fleet_file import FleetSpec
from baton.sim.gaps import Gaps
from baton.sim.prefill_worker import PrefillWorker
from baton.sim.ride import Outcome, Ride
from baton.sim.sim_entrance import SimEntrance
from baton.sim.sim_fleet import SimFleet, Stay
from baton.sim.sim_router import SimRouter
from baton.sim.sim_worker import SimWorker
from baton.sim.workload import SimRequest, Workload


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment. queued_tokens: prompts' tokens before and in prefill. running: sequences on decode
    workers. kv_used: share of all decode blocks that are held. prefill, decode: workers that take requests."""

    at_s: float
    queued_tokens: int
    running: int
    kv_used: float
    prefill: int
    decode: int


@dataclass(slots=True)
class Run:
    """All that a simulation leaves behind. A worker that changed roles stands under each that it had. stays: by its
    id, for how long each worker was there."""

    spec: FleetSpec
    workload: Workload
    policy: str
    seed: int
    rides: list[Ride] = field(default_factory=list)
    gaps: Gaps = field(default_factory=Gaps)
    prefill: list[PrefillWorker] = field(default_factory=list)
    decode: list[DecodeWorker] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stays: dict[str, Stay] = field(default_factory=dict)
    flips: list[Flipped] = field(default_factory=list)
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
        on_ended: Callable[[Ride], None] = lambda ride: None,
    ) -> None:
        self._spec = spec
        self._on_ended = on_ended
        self._clock = Clock()
        self._run = Run(spec, workload, policy, seed)
        self._block_tokens = workload.block_tokens
        run, clock = self._run, self._clock
        fleet = self._fleet = SimFleet(spec, clock, self._block_tokens, seed, run.gaps, self)
        run.prefill, run.decode, run.stays = fleet.all_prefill, fleet.all_decode, fleet.stays
        self._routers = [
            SimRouter(spec, fleet.prefill, fleet.decode, self._block_tokens, policy, seed + number)
            for number in range(spec.routers)
        ]
        self._next_sample_s = 0.0
        self._sample_every_s = workload.requests[-1].arrival_s / _SAMPLES
        self._entrance = SimEntrance(spec, clock, self._capacity, self._place, self._refuse)
        self._max_tokens = min(worker.blocks.num_blocks for worker in fleet.workers()) * self._block_tokens

    def run(self) -> Run:
        for request in self._run.workload.requests:
            self._clock.at(request.arrival_s, lambda request=request: self._arrive(request))  # type: ignore[misc]
        if self._spec.elastic is not None:
            elastic = Elastic(
                self._spec.elastic,
                self._clock,
                self._fleet,
                lambda: self._entrance.waiting_tokens,
                self._is_over,
            )
            self._run.flips = elastic.flips
            elastic.tick()
        self._clock.run()
        self._run.duration_s = max(
            (ride.last_token_at_s for ride in self._run.rides), default=self._clock.now_s
        )
        return self._run

    def _is_over(self) -> bool:
        return len(self._run.rides) == len(self._run.workload.requests) and self._entrance.is_empty

    def _capacity(self) -> Capacity:
        pools: tuple[Mapping[str, SimWorker], ...] = self._fleet.prefill, self._fleet.decode
        prefill, decode = ([worker for worker in pool.values() if worker.is_open] for pool in pools)
        return capacity_of([worker.speeds for worker in prefill or decode])

    def _arrive(self, request: SimRequest) -> None:
        self._sample()
        ride = Ride(request, self._clock.now_s)
        self._run.rides.append(ride)
        if request.prompt_tokens + request.output_tokens > self._max_tokens:
            self._refuse(ride, Outcome.TOO_LONG)
        else:
            self._entrance.arrive(ride)

    def _place(self, ride: Ride) -> None:
        ride.router = self._routers[ride.number % len(self._routers)]
        placement = ride.router.place(ride.request, self._clock.now_s)
        ride.placement = placement
        ride.decode = self._fleet.decode[placement.decode]
        ride.prefill = None if placement.prefill is None else self._fleet.prefill[placement.prefill]
        self._lease(ride)

    def _lease(self, ride: Ride) -> None:
        assert ride.placement is not None
        assert ride.decode is not None
        computing = ride.prefill or ride.decode
        computing.lease(ride.placement.prediction)
        self._entrance.placed(ride)
        ride.decode.lease_sequence(ride)
        self._clock.after(self._spec.queue_timeout_s, lambda: self._queue_timeout(ride))
        if ride.prefill is None:
            ride.decode.ask(ride)
        else:
            ride.prefill.leased_sequences += 1
            assert ride.router is not None
            ride.router.expect_cached(ride.prefill, ride.request)
            ride.prefill.submit(ride)

    def scheduled(self, ride: Ride) -> None:
        """The prompt's first chunk is next: now decode memory is asked for."""
        assert ride.decode is not None
        ride.decode.prompt_scheduled(ride)
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
        self._settle(ride)
        ride.output_tokens = 1
        if ride.request.output_tokens == 1:
            self._release_both(ride)
            self.ended(ride)
        else:
            told_at_s = self._clock.now_s + self._run.spec.handoff_start_s
            goes_on_at_s = max(told_at_s, ride.prefill.acknowledge_at_s())
            self._clock.at(goes_on_at_s, lambda: self._handed_off(ride))

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
        ride.decode.end_sequence(ride)
        self._entrance.end(ride)
        self._on_ended(ride)

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
        ride.decode.end_sequence(ride)
        self._settle(ride)
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
        self._on_ended(ride)

    def _settle(self, ride: Ride) -> None:
        assert ride.router is not None
        if ride.prefill is not None:
            ride.router.settle(ride.prefill, ride.request)

    def _note_cached(self, worker: SimWorker, ride: Ride) -> None:
        assert ride.router is not None
        ride.router.note_cached(worker, ride.request)

    def _sample(self) -> None:
        if self._clock.now_s < self._next_sample_s:
            return
        self._next_sample_s += self._sample_every_s
        prefill, decode = self._fleet.prefill.values(), self._fleet.decode.values()
        blocks = sum(worker.blocks.num_blocks for worker in decode)
        available = sum(worker.blocks.available for worker in decode)
        self._run.samples.append(
            Sample(
                self._clock.now_s,
                sum(worker.queued_tokens for worker in prefill),
                sum(worker.num_running for worker in decode),
                1 - available / blocks,
                sum(worker.is_open for worker in prefill),
                sum(worker.is_open for worker in decode),
            )
        )
