"""The contract of what starts and stops workers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from baton.errors import Unavailable
from baton.router.planner.actions import Start, Stop


@dataclass(frozen=True, slots=True)
class ScaleOrder:
    """One order, however often it has to be sent: `order_id` stays. reason, inputs: the planner's, for people."""

    action: Start | Stop
    reason: str
    inputs: Mapping[str, object] = field(default_factory=dict)
    order_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def body(self) -> dict[str, object]:
        """As JSON has it: `{"id", "action": "start", "role", "workers", "reason", "inputs"}`, workers being the
        total that there is to be, or `{"id", "action": "stop", "worker", "reason", "inputs"}`."""
        return {"id": self.order_id, **self.action.view(), "reason": self.reason, "inputs": self.inputs}


class Scaler(Protocol):
    async def order(self, order: ScaleOrder, leads: Callable[[], bool]) -> None:
        """Returns once the order is taken, not once it is carried out: workers that start join by themselves, and
        who is to stop gets SIGTERM, upon which a worker drains. Within a deadline of its own. leads: asked right
        before each attempt, for by then another planner may be at work. Raises Unavailable where nobody takes the
        order, or where it is not ours to give any more."""


def require_lead(leads: Callable[[], bool]) -> None:
    if not leads():
        raise Unavailable("this router does not lead any more", field="scaler")
