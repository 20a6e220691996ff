"""A router of the simulated fleet: the production `place` over the production index and columns."""

from __future__ import annotations

from collections.abc import Mapping

from baton.fleet import Role
from baton.router.fleet_columns import FleetColumns
from baton.router.placement import Placement, place
from baton.router.policies import load_policy
from baton.router.prefix_index import PrefixIndex
from baton.router.snapshot import Demand, Snapshot
from baton.sim.fleet_file import FleetSpec
from baton.sim.sim_worker import SimWorker
from baton.sim.workload import SimRequest


class SimRouter:
    """Knows its workers as they were at the last heartbeat, and what it has placed itself since then."""

    def __init__(
        self,
        spec: FleetSpec,
        prefill: Mapping[str, SimWorker],
        decode: Mapping[str, SimWorker],
        block_tokens: int,
        policy: str,
        seed: int,
    ) -> None:
        """prefill, decode: who has the role now, by id; followed, not copied."""
        self._spec = spec
        self._block_tokens = block_tokens
        self._policy = load_policy(policy)
        self._seed = seed
        self._placements = 0
        self._next_heartbeat_s = 0.0
        self._index = PrefixIndex()
        self._pools = {Role.PREFILL: prefill, Role.DECODE: decode}
        self._open: list[SimWorker] = []
        self._known: set[str] = set()
        self._columns = FleetColumns({}, self._index.slot)

    def place(self, request: SimRequest, now_s: float) -> Placement:
        self._follow()
        if now_s >= self._next_heartbeat_s:
            self._hear(now_s)
        hashes = self._full(request)
        matched_tokens = self._index.match_all(hashes) * self._block_tokens
        snapshot = self._columns.snapshot(matched_tokens, now_s)
        demand = Demand(
            prompt_tokens=request.prompt_tokens,
            blocks=-(-request.prompt_tokens // self._block_tokens),
            waited_s=now_s - request.arrival_s,
            session_key=request.session_key,
            local_prefill_tokens=self._spec.local_prefill_tokens,
            ttft_s=self._spec.objectives.ttft,
            tpot_s=self._spec.objectives.tpot,
            disaggregation=self._spec.disaggregation,
            ordinal=self._placements,
            seed=self._seed,
        )
        self._placements += 1
        placement = place(snapshot, demand, self._policy)
        assert isinstance(placement, Placement), "a fleet's file names at least one decode worker"
        self._lease(snapshot, placement, demand)
        return placement

    def expect_cached(self, worker: SimWorker, request: SimRequest) -> None:
        """Who queues behind this prompt will find it computed."""
        if self._spec.kv_events:
            self._index.expect(worker.worker_id, self._full(request))
        else:
            self.note_cached(worker, request)

    def settle(self, worker: SimWorker, request: SimRequest) -> None:
        """What was expected there is computed, or will not be."""
        if self._spec.kv_events:
            self._index.settle(worker.worker_id, self._full(request))

    def note_cached(self, worker: SimWorker, request: SimRequest) -> None:
        """What events tell anyway, where there are any."""
        if not self._spec.kv_events:
            self._index.add(worker.worker_id, self._full(request), worker.blocks.num_blocks)

    def _full(self, request: SimRequest) -> tuple[bytes, ...]:
        return request.hashes[: request.prompt_tokens // self._block_tokens]

    def _follow(self) -> None:
        """Whoever joins or leaves a pool is known at once, and what a worker had that is gone is forgotten."""
        pools = {role: [w for w in pool.values() if w.is_open] for role, pool in self._pools.items()}
        is_open = [worker for pool in pools.values() for worker in pool]
        if is_open != self._open:
            self._open = is_open
            self._listen()
            there = {worker_id for pool in self._pools.values() for worker_id in pool}
            for worker_id in self._known - there:
                self._index.forget(worker_id)
            self._known = there
            candidates = {role: [worker.candidate() for worker in pool] for role, pool in pools.items()}
            self._columns = FleetColumns(candidates, self._index.slot)

    def _listen(self) -> None:
        for worker in self._open:
            if self._spec.kv_events and self._index not in worker.events.followers:
                worker.events.followers.append(self._index)

    def _hear(self, now_s: float) -> None:
        self._next_heartbeat_s = now_s + self._spec.heartbeat_s
        for worker in self._open:
            self._columns.write(worker.candidate())

    def _lease(self, snapshot: Snapshot, placement: Placement, demand: Demand) -> None:
        """Adds to the view what the workers will tell with their next heartbeat."""
        prefill, decode = snapshot.prefill, snapshot.decode
        row = decode.index(placement.decode)
        decode.sequences[row] += 1
        decode.context_tokens[row] += demand.prompt_tokens
        decode.queued_sequences[row] += placement.prefill is not None
        computing = decode if placement.prefill is None else prefill
        index = computing.index(placement.prefill or placement.decode)
        if placement.prefill is None:
            self._columns.note_local_prefill(placement.decode, placement.prediction.prefill_s)
        computing.queued_tokens[index] += placement.prediction.prefill_tokens
        computing.queued_s[index] += placement.prediction.prefill_s
