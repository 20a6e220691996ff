"""Whose request is next: tenants share by tokens served, and each orders its own by priority.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant has
a counter of the tokens that it was served, output counting double. The tenant with the smallest counter is next.
One that comes back after a pause is lifted to the smallest counter of those who wait, so that nobody saves up;
where nobody waits, to that of the last one who did. So each gets its share while others wait, and all there is
while they do not.

Among the requests of one tenant a level of priority is worth `PRIORITY_STEP_S` seconds of waiting: a lower value
goes first, and every request is overtaken only by those that come within a bounded time.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections import OrderedDict
from dataclasses import dataclass, field

INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a token of the prompt and of the answer counts, as in the paper."""

PRIORITY_STEP_S = 10.0

MAX_IDLE_TENANTS = 4096
"""Counters kept of tenants of whom nothing waits; the one longest without a request is forgotten."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request that waits or was admitted. work_s: what its prompt will take a worker, as far as is known."""

    request_id: str
    tenant: str
    prompt_tokens: int
    priority: int
    arrived_at_s: float
    work_s: float = 0.0

    @property
    def due_s(self) -> float:
        return self.arrived_at_s + self.priority * PRIORITY_STEP_S


@dataclass(slots=True, eq=False)
class _Tenant:
    """waiting: in order; the number breaks ties by arrival."""

    served_tokens: float = 0.0
    waiting: list[tuple[float, int, Entry]] = field(default_factory=list)


class FairQueue:
    """Requests of all tenants that wait."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Tenant] = {}
        self._idle: OrderedDict[str, _Tenant] = OrderedDict()
        self._last = _Tenant()
        self._numbers = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def prompt_tokens(self) -> int:
        return sum(entry.prompt_tokens for tenant in self._waiting.values() for _, _, entry in tenant.waiting)

    @property
    def waiting_tenants(self) -> int:
        return len(self._waiting)

    def waiting_of(self, tenant: str) -> int:
        return len(self._waiting[tenant].waiting) if tenant in self._waiting else 0

    def add(self, entry: Entry) -> None:
        tenant = self._waiting.get(entry.tenant) or self._join(entry.tenant)
        insort(tenant.waiting, (entry.due_s, next(self._numbers), entry))
        self._length += 1

    def take(self) -> Entry:
        """The next one; its prompt is charged to its tenant."""
        name = min(self._waiting, key=lambda one: (self._waiting[one].served_tokens, self._arrival(one)))
        tenant = self._waiting[name]
        _, _, entry = tenant.waiting[0]
        tenant.served_tokens += INPUT_WEIGHT * entry.prompt_tokens
        self._drop(entry, 0)
        return entry

    def shed(self, newest: str) -> Entry:
        """Removes what has to give way in a full queue: the last of the tenant with the most requests, which among
        equals is `newest`. So a tenant that floods the queue keeps nobody else out of it."""
        name = max(self._waiting, key=lambda one: (len(self._waiting[one].waiting), one == newest))
        _, _, entry = self._waiting[name].waiting[-1]
        self._drop(entry, -1)
        return entry

    def remove(self, entry: Entry) -> None:
        """It waits no longer; one that does not is left alone."""
        tenant = self._waiting.get(entry.tenant)
        if tenant is None:
            return
        for position, (_, _, other) in enumerate(tenant.waiting):
            if other is entry:
                self._drop(entry, position)
                return

    def charge_output(self, name: str, tokens: int) -> None:
        """Tokens of an answer that `name` was served; a tenant forgotten meanwhile owes nothing."""
        tenant = self._waiting.get(name) or self._idle.get(name)
        if tenant is not None:
            tenant.served_tokens += OUTPUT_WEIGHT * tokens

    def _arrival(self, name: str) -> int:
        return self._waiting[name].waiting[0][1]

    def _join(self, name: str) -> _Tenant:
        tenant = self._idle.pop(name, None) or _Tenant()
        others = [other.served_tokens for other in self._waiting.values()]
        tenant.served_tokens = max(tenant.served_tokens, min(others, default=self._last.served_tokens))
        self._waiting[name] = tenant
        return tenant

    def _drop(self, entry: Entry, position: int) -> None:
        tenant = self._waiting[entry.tenant]
        del tenant.waiting[position]
        self._length -= 1
        if not tenant.waiting:
            self._last = self._idle[entry.tenant] = self._waiting.pop(entry.tenant)
            if len(self._idle) > MAX_IDLE_TENANTS:
                self._idle.popitem(last=False)
