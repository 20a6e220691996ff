"""The workers of a simulated fleet: who has which role, who comes and leaves, and for how long each is paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from baton.engine.step_room import ChunkLimit
from baton.fleet import Role
from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeListener, DecodeWorker
from baton.sim.fleet_file import FleetSpec, Pool
from baton.sim.gaps import Gaps
from baton.sim.prefill_worker import PrefillListener, PrefillWorker
from baton.sim.sim_worker import Setup, SimWorker


class WorkListener(PrefillListener, DecodeListener, Protocol):
    """Hears of what workers of either role do."""


@dataclass(slots=True)
class Stay:
    """A worker's time in the fleet, from the order to start it, in virtual time. until_s: None while there."""

    pool: Pool
    from_s: float = 0.0
    until_s: float | None = None

    def paid_s(self, end_s: float) -> float:
        """Of the time up to `end_s`."""
        until_s = end_s if self.until_s is None else min(end_s, self.until_s)
        return max(0.0, until_s - self.from_s)


class SimFleet:
    """starting: workers that are ordered and have not come. all_prefill, all_decode: all that there ever were; who
    changed roles stands under each that it had. stays: by worker id, each of which is used once."""

    def __init__(
        self, spec: FleetSpec, clock: Clock, block_tokens: int, seed: int, gaps: Gaps, listener: WorkListener
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._block_tokens = block_tokens
        self._seed = seed
        self._gaps = gaps
        self._listener = listener
        self._prefill: dict[str, PrefillWorker] = {}
        self._decode: dict[str, DecodeWorker] = {}
        self.starting = 0
        self.all_prefill: list[PrefillWorker] = []
        self.all_decode: list[DecodeWorker] = []
        self.stays: dict[str, Stay] = {}
        for pool in spec.pools:
            for _ in range(pool.workers):
                self._make(self._sign_on(pool), pool, pool.role)

    @property
    def prefill(self) -> Mapping[str, PrefillWorker]:
        """Who has the role now, by id; followed, not copied."""
        return self._prefill

    @property
    def decode(self) -> Mapping[str, DecodeWorker]:
        return self._decode

    def workers(self) -> list[SimWorker]:
        """All there are now, also those that leave their pool."""
        return [*self._prefill.values(), *self._decode.values()]

    def change_role(self, worker: SimWorker, role: Role) -> None:
        """`worker`, which has finished, goes on in `role` with the KV pool that it has."""
        self._drop(worker)
        self._make(worker.worker_id, worker.pool, role).go_on_from(worker)

    def start(self, role: Role, start_s: float) -> None:
        """One worker more, of the kind that begins in `role`: paid from now on, there `start_s` later."""
        pool = next((pool for pool in self._spec.pools if pool.role is role), self._spec.pools[0])
        self.starting += 1
        self._clock.after(start_s, partial(self._arrive, self._sign_on(pool), pool, role))

    def stop(self, worker: SimWorker) -> None:
        """`worker`, which has finished, is gone."""
        assert worker.blocks.available == worker.blocks.num_blocks, f"{worker.worker_id} still holds KV"
        self._drop(worker)
        self.stays[worker.worker_id].until_s = self._clock.now_s

    def _sign_on(self, pool: Pool) -> str:
        names = (f"{pool.name}-{number}" for number in count())
        worker_id = next(name for name in names if name not in self.stays)
        self.stays[worker_id] = Stay(pool, self._clock.now_s)
        return worker_id

    def _arrive(self, worker_id: str, pool: Pool, role: Role) -> None:
        self.starting -= 1
        self._make(worker_id, pool, role)

    def _drop(self, worker: SimWorker) -> None:
        del (self._decode if isinstance(worker, DecodeWorker) else self._prefill)[worker.worker_id]

    def _make(self, worker_id: str, pool: Pool, role: Role) -> SimWorker:
        setup = Setup(
            worker_id,
            pool,
            self._block_tokens,
            self._clock,
            self._spec.max_running,
            self._chunk_limit(pool),
            self._seed,
        )
        if role is Role.PREFILL:
            prefill = self._prefill[worker_id] = PrefillWorker(setup, self._listener)
            self.all_prefill.append(prefill)
            return prefill
        decode = self._decode[worker_id] = DecodeWorker(setup, self._gaps, self._listener)
        self.all_decode.append(decode)
        return decode

    def _chunk_limit(self, pool: Pool) -> ChunkLimit:
        speeds = pool.hardware.speeds()
        return ChunkLimit(self._spec.chunk_tokens, self._spec.chunk_s, lambda: speeds)
