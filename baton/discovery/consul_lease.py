"""One service under a TTL check, which is how Consul spells a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consul import Check

from baton.discovery.consul_api import ConsulApi, ConsulRefusal

_FORGET_AFTER = "1m"
"""How long Consul keeps the entry of a service whose lease has ended; it takes no less."""


class ConsulLease:
    """The lease of the service `service_id` in its `epoch`: whoever announces it in another takes it over."""

    def __init__(self, api: ConsulApi, service_id: str, epoch: str, lease_s: float) -> None:
        self.check_id = f"{service_id}:{epoch}"
        self._api = api
        self._service_id = service_id
        self._epoch = epoch
        self._lease_s = lease_s

    async def announce(
        self, name: str, tags: Sequence[str], meta: Mapping[str, str], address: str = ""
    ) -> None:
        """Begins the lease, or changes what the catalogue says of its holder. address: host:port."""
        host, _, port = address.rpartition(":")
        check = Check.ttl(f"{self._lease_s:g}s")
        check |= {"checkid": self.check_id, "name": "lease", "deregistercriticalserviceafter": _FORGET_AFTER}
        call = self._api.consul.agent.service.register(
            name,
            service_id=self._service_id,
            address=host.strip("[]"),
            port=int(port or 0),
            tags=list(tags),
            meta={**meta, "epoch": self._epoch},
            check=check,
            replace_existing_checks=True,
        )
        await self._api.ask(call)
        await self.renew()  # for a new check is critical at first

    async def renew(self) -> bool:
        """False where Consul knows of no such lease."""
        try:
            call = self._api.consul.agent.check.ttl_pass(self.check_id)
            return bool(await self._api.ask(call))
        except ConsulRefusal:
            return False

    async def end(self) -> None:
        """Takes the service off the catalogue, where it is still this epoch's."""
        agent = self._api.consul.agent
        known = await self._api.ask(agent.service_definition(self._service_id))
        if known is not None and known["Meta"].get("epoch") == self._epoch:
            await self._api.ask(agent.service.deregister(self._service_id))
