"""The registry on Consul: workers are services under TTL checks, watches are blocking queries, offices are locks.

The names on Consul begin with the fleet's prefix, so that one Consul serves several fleets: the services
`PREFIX-workers` and `PREFIX-candidates`, and the keys below `PREFIX/office/`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from baton.discovery.base import RegistryAccess, RegistryAddress
from baton.discovery.consul_api import CALL_TIMEOUT_S, ConsulApi
from baton.discovery.consul_lease import ConsulLease
from baton.discovery.consul_office import ConsulOffice
from baton.discovery.consul_record import from_meta, to_meta
from baton.errors import BatonError, ConfigError, DuplicateWorker, Unavailable
from baton.fleet import Fleet, Member, WorkerInfo, WorkerLoad, WorkerState

LEASE_S = 3.0
DEFAULT_PREFIX = "baton"

_PREFIX = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,46}[A-Za-z0-9])?")
_LOAD_INTERVAL_S = 0.5
"""At least so far apart are a worker's reports of load, for each is a write to all of Consul's servers."""

REPEAT_LEASES = 3
"""After so many leases a worker's report is repeated though nothing has changed: one that was given up on its way
may arrive late and overwrite a later one."""

_COALESCE_S = 0.1
"""Pause of a watch after an answer, so that many workers' reports come in one."""

_WAIT_S = 2.0
"""How long a blocking query waits for a change. Short, for it is also how a dead connection is noticed."""

_EVICTION_GRACE_S = 1.0
"""Between the end of a lease and the eviction. Where it was Consul that stood still, the heartbeats that wait to
be read are read in the meantime."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Announced:
    lease: ConsulLease
    member: Member
    at_s: float


class ConsulRegistry:
    """One client of one Consul agent, best the one on this host: it is the agent that counts the leases."""

    def __init__(self, api: ConsulApi, prefix: str, secret: bytes, lease_s: float = LEASE_S) -> None:
        self._api = api
        self._prefix = prefix
        self._secret = secret
        self._lease_s = lease_s
        self._announced: dict[str, _Announced] = {}
        self._offices: dict[tuple[str, str], ConsulOffice] = {}

    @classmethod
    def open(cls, address: RegistryAddress, secret: bytes, access: RegistryAccess) -> Self:
        prefix = address.path or DEFAULT_PREFIX
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(
                f"the prefix {prefix!r} of this fleet's names on Consul is not 1 to 48 letters, digits and "
                "inner hyphens",
                field="registry",
            )
        return cls(ConsulApi(address, access), prefix, secret)

    async def register(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> float:
        service_id = f"{self._prefix}-workers:{worker.worker_id}"
        await self._require_unique(worker)
        lease = ConsulLease(self._api, service_id, worker.epoch.hex(), self._lease_s)
        await self._announce(lease, Member(worker, state, load))
        return self._lease_s

    async def heartbeat(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> bool:
        """Also True where the lease had ended and this very heartbeat has begun it anew."""
        announced = self._announced.get(worker.worker_id)
        if announced is None or announced.member.worker.epoch != worker.epoch:
            return False
        if not await announced.lease.renew():
            return False
        member = Member(worker, state, load)
        age_s = time.monotonic() - announced.at_s
        is_news = member != announced.member and (
            age_s >= _LOAD_INTERVAL_S or state is not announced.member.state
        )
        if is_news or age_s >= REPEAT_LEASES * self._lease_s:
            await self._announce(announced.lease, member)
        return True

    async def deregister(self, worker: WorkerInfo) -> None:
        announced = self._announced.get(worker.worker_id)
        if announced is not None and announced.member.worker.epoch == worker.epoch:
            del self._announced[worker.worker_id]
            await announced.lease.end()

    async def watch(self) -> AsyncGenerator[Fleet, None]:
        """Another's or an unreadable entry is passed over, and named in the log. Raises Unauthorized for a token
        that may not see the workers."""
        await self._api.require_readable(f"{self._prefix}-workers")
        roster = _Roster(self._secret)
        index = 0
        fleet: Fleet | None = None
        while True:
            wait_s = _EVICTION_GRACE_S if roster.has_doubtful else _WAIT_S
            index, entries = await self._query(index, wait_s)
            now = roster.read(entries, time.monotonic())
            if now != fleet:
                fleet = now
                yield fleet
            await asyncio.sleep(_COALESCE_S)

    async def elect(self, office: str, candidate: str) -> float:
        held = self._offices.get((office, candidate))
        if held is None:
            held = ConsulOffice(self._api, self._prefix, office, candidate, self._lease_s)
            self._offices[office, candidate] = held
        return await held.hold()

    async def resign(self, office: str, candidate: str) -> None:
        held = self._offices.pop((office, candidate), None)
        if held is not None:
            await held.release()

    async def close(self) -> None:
        await self._api.close()

    async def _require_unique(self, worker: WorkerInfo) -> None:
        """Refuses a second process under one id while the first one's lease lasts."""
        _, entries = await self._query(0, 0.0)
        for holder in (member.worker for member in _Roster(self._secret).read(entries, 0.0).members):
            is_other = holder.epoch != worker.epoch and holder.address != worker.address
            if holder.worker_id == worker.worker_id and is_other:
                raise DuplicateWorker(
                    f"worker id {worker.worker_id!r} belongs to the process {holder.pid} at {holder.address}, "
                    "whose lease lasts",
                    field="worker_id",
                )

    async def _announce(self, lease: ConsulLease, member: Member) -> None:
        worker = member.worker
        name, tags = f"{self._prefix}-workers", [worker.role.value]
        await lease.announce(name, tags, to_meta(member, self._secret), worker.address)
        self._announced[worker.worker_id] = _Announced(lease, member, time.monotonic())

    async def _query(self, index: int, wait_s: float) -> tuple[int, Sequence[Mapping[str, Any]]]:
        """The catalogue's entries: at once where `index` is 0, else when they are newer, or after `wait_s`."""
        wait = f"{wait_s:g}s"
        longest_s = wait_s * 17 / 16 if index else 0.0  # Consul adds up to a sixteenth
        health = self._api.consul.health
        call = health.service(f"{self._prefix}-workers", index=index or None, wait=wait)
        answered_index, entries = await self._api.ask(call, CALL_TIMEOUT_S + longest_s)
        if int(answered_index) < index:
            raise Unavailable(f"Consul has lost its memory: its index fell from {index} to {answered_index}")
        return max(1, int(answered_index)), entries


class _Roster:
    """Who of the catalogue's entries is in the fleet, for one watch."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._members: dict[str, Member] = {}
        self._silent_since_s: dict[str, float] = {}
        self._complaints: dict[str, str] = {}

    @property
    def has_doubtful(self) -> bool:
        return bool(self._silent_since_s)

    def read(self, entries: Sequence[Mapping[str, Any]], now_s: float) -> Fleet:
        members: dict[str, Member] = {}
        silent: dict[str, float] = {}
        complaints: dict[str, str] = {}
        # Where a worker has moved to another agent, what it announced last holds.
        for entry in sorted(entries, key=lambda entry: int(entry["Service"]["ModifyIndex"])):
            service_id = str(entry["Service"]["ID"])
            try:
                member = from_meta(entry["Service"]["Meta"] or {}, self._secret)
            except BatonError as error:
                complaints[service_id] = error.message
                continue
            worker_id = member.worker.worker_id
            if _is_passing(entry):
                members[worker_id] = member
                silent.pop(worker_id, None)
            elif worker_id in self._members:
                silent[worker_id] = self._silent_since_s.get(worker_id, now_s)
                if now_s < silent[worker_id] + _EVICTION_GRACE_S:
                    members.setdefault(worker_id, _suspected(member))
        self._complain(complaints)
        self._members = members
        self._silent_since_s = {worker_id: at_s for worker_id, at_s in silent.items() if worker_id in members}
        return Fleet(tuple(members[worker_id] for worker_id in sorted(members)))

    def _complain(self, complaints: dict[str, str]) -> None:
        for service_id, complaint in complaints.items():
            if self._complaints.get(service_id) != complaint:
                _log.warning("service %s on Consul is not used: %s", service_id, complaint)
        self._complaints = complaints


def _suspected(member: Member) -> Member:
    return replace(member, state=WorkerState.SUSPECTED) if member.state is WorkerState.READY else member


def _is_passing(entry: Mapping[str, Any]) -> bool:
    return all(check["Status"] != "critical" for check in entry["Checks"])
