"""The workers as this router knows them: who is there, how busy they are, what they cache, how to reach them.

What a worker reports is up to a heartbeat old, so the router adds what it has sent since: the larger of the
reported and its own count holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager

import msgspec

from baton.background import OnCrash
from baton.fleet import Fleet, Member, ModelInfo, Role, WorkerInfo, WorkerState
from baton.kvtransfer.errors import LayoutMismatch
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.schemes import SAME_HOST_SCHEMES
from baton.request import GenerationRequest
from baton.router.admission import Capacity, capacity_of
from baton.router.breaker import Standing
from baton.router.caches import Caches
from baton.router.candidates import Candidate
from baton.router.decode_peer import DecodePeer
from baton.router.fleet_columns import FleetColumns
from baton.router.lease import Lease, Tracked
from baton.router.placement import Placement
from baton.router.prefill_peer import PrefillPeer
from baton.router.prompt_hashes import PromptHashes
from baton.router.snapshot import Snapshot
from baton.rpc import Channel

FORGOTTEN_S = 2.0
"""After the registry has given up a worker: how long its prompts are waited for before others compute them."""

_DEFAULT_BLOCK_SIZE = 16
"""Where nobody is there to count by."""

_decode_layout = msgspec.msgpack.Decoder(KVLayout).decode
_log = logging.getLogger(__name__)


class Workers:
    """Follows the registry and keeps one peer a worker. On the router's event loop."""

    def __init__(
        self, secret: bytes, router_id: str, on_crash: OnCrash, silence_s: float = FORGOTTEN_S
    ) -> None:
        """silence_s: what a prefill worker that the registry has forgotten has left to finish its prompts."""
        self._silence_s = silence_s
        self._on_crash = on_crash
        self._secret = secret
        self._router_id = router_id
        self._tracked: dict[str, Tracked] = {}
        self.caches = Caches(secret, on_crash)
        self._columns: FleetColumns | None = None
        self._connected: list[bool] = []
        self._refused: dict[str, bytes] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def follow(self, fleets: AsyncIterator[Fleet]) -> None:
        """Runs until cancelled, or until `fleets` ends."""
        async for fleet in fleets:
            self.update(fleet)

    def update(self, fleet: Fleet) -> None:
        present = {member.worker.worker_id: member for member in fleet.members}
        self._refused = {w: epoch for w, epoch in self._refused.items() if w in present}
        for worker_id, tracked in list(self._tracked.items()):
            member = present.get(worker_id)
            if member is None:
                self._forget(tracked)
                self._drop_if_idle(tracked)
            elif member.worker.epoch != tracked.worker.epoch:
                self._drop(worker_id)
            elif member.worker.role is not tracked.worker.role:
                self._disconnect(worker_id)
        for worker_id, member in present.items():
            if worker_id in self._tracked:
                self._hear(self._tracked[worker_id], member)
                self._tracked[worker_id].note_state()
            elif (mismatch := self._mismatch(member.worker)) is not None:
                self._refuse(member.worker, mismatch)
            else:
                peer = self._connect(member.worker)
                kv_bytes = _kv_bytes_per_token(member.worker)
                tracked = Tracked(member, peer, kv_bytes_per_token=kv_bytes)
                self._tracked[worker_id] = tracked
                self.caches.add(member.worker, tracked.pool_blocks)
                self._columns = None
        self._give_up_on_stalled()
        self._notify()

    def _give_up_on_stalled(self) -> None:
        """An engine that hangs may come back at once or never; what it has goes on elsewhere, if there is an
        elsewhere."""
        if self.can_serve():
            for tracked in self._tracked.values():
                if tracked.member.state is WorkerState.STALLED:
                    tracked.peer.give_up(f"the engine of {tracked.worker.worker_id} hangs")

    def _forget(self, tracked: Tracked) -> None:
        if tracked.is_member:
            tracked.forget(self._silence_s)
            self._columns = None

    def _hear(self, tracked: Tracked, member: Member) -> None:
        known, tracked.member = tracked.member, member
        if (known.worker, known.state, tracked.is_member) != (member.worker, member.state, True):
            tracked.come_back()
            self._columns = None
        elif known.load != member.load:
            self._note_load(tracked)

    async def changed(self) -> None:
        """Waits until a worker reports, joins, leaves or can be reached again."""
        await self._changed.wait()

    async def close(self) -> None:
        for worker_id in list(self._tracked):
            self._drop(worker_id)
        await asyncio.gather(*self._closing, self.caches.close())

    @property
    def members(self) -> list[Member]:
        return [tracked.member for tracked in self._tracked.values() if tracked.is_member]

    @property
    def channels(self) -> dict[str, Channel]:
        """To every worker of the fleet, by id."""
        return {id_: tracked.peer.channel for id_, tracked in self._tracked.items() if tracked.is_member}

    @property
    def model(self) -> ModelInfo | None:
        """What the fleet serves; its limit is that of the tightest worker. None while nobody is there."""
        models = [member.worker.model for member in self.members]
        return min(models, key=lambda model: model.max_model_tokens, default=None)

    def prompt_capacity(self) -> Capacity:
        """Who computes prompts: the prefill workers, or where there are none the decode workers."""
        usable = {role: [t for t in self._tracked.values() if t.serves(role)] for role in Role}
        computing = usable[Role.PREFILL] or usable[Role.DECODE]
        return capacity_of([tracked.worker.profile for tracked in computing])

    def can_serve(self) -> bool:
        return any(tracked.serves(Role.DECODE) for tracked in self._tracked.values())

    def worker(self, worker_id: str) -> WorkerInfo:
        """Of a worker that was placed on just now."""
        return self._tracked[worker_id].worker

    def has_ready(self, worker_id: str, role: Role) -> bool:
        tracked = self._tracked.get(worker_id)
        return tracked is not None and tracked.serves(role)

    def snapshot(self, hashes: PromptHashes, excluded: Collection[str]) -> Snapshot:
        """The candidates for a prompt with these block hashes, without those that have just failed it."""
        now_s = time.monotonic()
        connected = [tracked.peer.is_connected for tracked in self._tracked.values()]
        if self._columns is None or connected != self._connected:
            self._connected = connected
            self._columns = self._made_columns()
        return self._columns.snapshot(self.caches.matched_tokens(hashes), now_s, frozenset(excluded))

    def doubtful(self) -> frozenset[str]:
        """Workers for whoever has no others: they have missed heartbeats, or rest after faults of theirs."""
        return frozenset(
            worker_id
            for worker_id, tracked in self._tracked.items()
            if tracked.member.state is WorkerState.SUSPECTED or not tracked.peer.breaker.allows()
        )

    def breakers(self) -> dict[str, Standing]:
        """Of every member, by its id."""
        return {w: t.peer.breaker.standing for w, t in self._tracked.items() if t.is_member}

    @contextmanager
    def lease(
        self, placement: Placement, request: GenerationRequest, hashes: PromptHashes
    ) -> Iterator[Lease]:
        """Counts `request` as under way on its workers for as long as the context is open, and its prompt as
        cached on the prefill worker: who queues behind it will find it computed."""
        decode = self._tracked[placement.decode]
        prefill = decode if placement.prefill is None else self._tracked[placement.prefill]
        if placement.prefill is None and self._columns is not None:
            self._columns.note_local_prefill(placement.decode, placement.prediction.prefill_s)
        expectation = None if placement.prefill is None else self.caches.expect(placement.prefill, hashes)
        lease = Lease(prefill, decode, placement.prediction, request, expectation, self._note_load)
        try:
            yield lease
        finally:
            lease.end()
            for tracked in lease.tracked:
                self._drop_if_idle(tracked)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    @property
    def _block_size(self) -> int:
        """Tokens a block as this router counts them: the smallest of any worker's."""
        sizes = (tracked.worker.block_size for tracked in self._tracked.values())
        return min(sizes, default=_DEFAULT_BLOCK_SIZE)

    def _made_columns(self) -> FleetColumns:
        usable = {
            role: [self._candidate(t) for t in self._tracked.values() if t.serves(role)] for role in Role
        }
        return FleetColumns(usable, self.caches.index.slot)

    def _note_load(self, tracked: Tracked) -> None:
        if self._columns is not None:
            self._columns.write(self._candidate(tracked))

    def _candidate(self, tracked: Tracked) -> Candidate:
        worker, load = tracked.worker, tracked.member.load
        held_blocks = load.kv_blocks.used + load.kv_blocks.reserved
        reported = load.running + load.waiting
        sequences = max(reported, tracked.sequences)
        return Candidate(
            worker.worker_id,
            queued_tokens=max(load.queued_tokens, tracked.prefill_tokens),
            queued_s=tracked.prefill_s,
            sequences=sequences,
            context_tokens=max(held_blocks * worker.block_size, tracked.context_of(sequences)),
            available_blocks=(load.kv_blocks.free + load.kv_blocks.cached)
            * worker.block_size
            // self._block_size,
            queued_sequences=min(tracked.queued_sequences, sequences - reported),
            kv_bytes_per_token=tracked.kv_bytes_per_token,
            block_tokens=worker.block_size,
            max_running=worker.max_running or math.inf,
            host=_host_of(worker),
            profile=worker.profile,
        )

    def _mismatch(self, worker: WorkerInfo) -> str | None:
        """Why this worker cannot exchange KV with those that are here already, if it cannot."""
        for tracked in self._tracked.values():
            other = tracked.worker
            if worker.model.fingerprint != other.model.fingerprint:
                return f"its model {worker.model.name!r} is not the model of {other.worker_id}"
            try:
                _decode_layout(worker.kv_layout).require_convertible(_decode_layout(other.kv_layout))
            except (LayoutMismatch, msgspec.DecodeError) as error:
                return f"its blocks cannot be exchanged with those of {other.worker_id}: {error}"
        return None

    def _refuse(self, worker: WorkerInfo, reason: str) -> None:
        if self._refused.get(worker.worker_id) != worker.epoch:
            self._refused[worker.worker_id] = worker.epoch
            _log.warning("worker %s is not used: %s", worker.worker_id, reason)

    def _connect(self, worker: WorkerInfo) -> PrefillPeer | DecodePeer:
        _log.info("%s worker %s has joined (%s)", worker.role.value, worker.worker_id, worker.address)
        if worker.role is Role.PREFILL:
            return PrefillPeer(worker, self._secret, self._on_crash)
        return DecodePeer(worker, self._secret, self._router_id, self._on_crash, self._notify)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _drop_if_idle(self, tracked: Tracked) -> None:
        """Lets go of a worker that the registry has forgotten, once no request runs there any more."""
        worker_id = tracked.worker.worker_id
        if not tracked.is_member and not tracked.leases and self._tracked.get(worker_id) is tracked:
            self._drop(worker_id)

    def _drop(self, worker_id: str) -> None:
        _log.info("worker %s has left", worker_id)
        self.caches.remove(worker_id)
        self._disconnect(worker_id)

    def _disconnect(self, worker_id: str) -> None:
        tracked = self._tracked.pop(worker_id)
        self._columns = None
        task = asyncio.create_task(tracked.peer.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _kv_bytes_per_token(worker: WorkerInfo) -> float:
    """0 where its layout cannot be read; hand-offs to it will then be refused, not mispredicted."""
    try:
        layout = _decode_layout(worker.kv_layout)
        return 2 * layout.layers * layout.kv_heads * layout.head_dim * layout.value_bytes
    except (LayoutMismatch, msgspec.DecodeError):
        return 0.0


def _host_of(worker: WorkerInfo) -> str:
    """What tells workers that can hand off within a host; empty where this one has no way to."""
    host, _, _ = worker.address.rpartition(":")
    return host if SAME_HOST_SCHEMES.intersection(worker.schemes) else ""
