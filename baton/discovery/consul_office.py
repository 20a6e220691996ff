"""An office on Consul: a key's lock, held by a session that ends with the candidate's own lease.

After "Leader election" of Consul's documentation. A session's own TTL would be 10 s at least.
"""

from __future__ import annotations

import math
import secrets
import time

from baton.discovery.consul_api import ConsulApi, ConsulRefusal
from baton.discovery.consul_lease import ConsulLease


class ConsulOffice:
    """`candidate`'s way to `office`. Calls are not to overlap.

    Two holders at once are kept apart by: the lease, which ends at the holder no later than at Consul; a lock
    delay of a lease, for sessions that end before theirs (an agent that leaves); and for a Consul that has lost
    its memory, the lock included, by waiting a lease before a key is made.
    """

    def __init__(self, api: ConsulApi, prefix: str, office: str, candidate: str, lease_s: float) -> None:
        self._api = api
        self._name = f"{prefix}-candidates"
        self._candidate = candidate
        self._office = office
        self._key = f"{prefix}/office/{office}"
        self._lease_s = lease_s
        service_id = f"{self._name}:{office}:{candidate}"
        self._lease = ConsulLease(api, service_id, secrets.token_hex(8), lease_s)
        self._session: str | None = None
        self._unknown_since_s: float | None = None

    async def hold(self) -> float:
        """Seconds from the call for which the office is held; 0 where it is not."""
        unknown_since_s, self._unknown_since_s = self._unknown_since_s, None
        if not await self._lease.renew():
            await self._lease.announce(self._name, [self._office], {"candidate": self._candidate})
        kv = self._api.consul.kv
        try:
            self._session = self._session or await self._open_session()
            _, entry = await self._api.ask(kv.get(self._key, consistency="consistent"))
            if entry is None:
                self._unknown_since_s = unknown_since_s or time.monotonic()
                if time.monotonic() < self._unknown_since_s + self._lease_s:
                    return 0.0
            elif holder := entry.get("Session"):
                return self._lease_s if holder == self._session else 0.0
            return self._lease_s if await self._lock() else 0.0
        except ConsulRefusal:  # it has no leader now, or its catalogue does not have our check yet
            return 0.0

    async def release(self) -> None:
        if self._session is not None:
            consul, session, self._session = self._api.consul, self._session, None
            await self._api.ask(consul.kv.put(self._key, "", release=session))
            await self._api.ask(consul.session.destroy(session))
        await self._lease.end()

    async def _open_session(self) -> str:
        call = self._api.consul.session.create(
            name=self._name,
            checks=["serfHealth", self._lease.check_id],
            lock_delay=math.ceil(self._lease_s),
        )
        return str(await self._api.ask(call))

    async def _lock(self) -> bool:
        """Tries to take the free key. A session is given up only here, where it is known to have ended: one that
        lives on unheeded, under the same check, would keep the key from everybody."""
        consul = self._api.consul
        _, session = await self._api.ask(consul.session.info(self._session))
        if session is None:
            self._session = None
            return False
        return bool(await self._api.ask(consul.kv.put(self._key, self._candidate, acquire=self._session)))
