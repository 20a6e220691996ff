"""What the planner wants done, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.fleet import Role
from baton.router.planner.load import PoolLoad


@dataclass(frozen=True, slots=True)
class Flip:
    """`worker_id` is to go over to `role`."""

    worker_id: str
    role: Role

    def view(self) -> dict[str, object]:
        return {"action": "flip", "worker": self.worker_id, "role": self.role.value}


@dataclass(frozen=True, slots=True)
class Start:
    """There are to be `workers` in both pools together; who is missing begins in `role`. A total, so that two
    orders of it are as good as one."""

    role: Role
    workers: int

    def view(self) -> dict[str, object]:
        return {"action": "start", "role": self.role.value, "workers": self.workers}


@dataclass(frozen=True, slots=True)
class Stop:
    """`worker_id` is to finish or move what it has, and to end."""

    worker_id: str

    def view(self) -> dict[str, object]:
        return {"action": "stop", "worker": self.worker_id}


Action = Flip | Start | Stop


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision. reason: for people. held_by: the rule that stands against acting, in one word; empty where
    there are actions. pools: what it was decided on; empty where nothing was known yet. needed_workers: in both
    pools together to bear the load with ease; 0 where nobody asks."""

    reason: str
    actions: tuple[Action, ...] = ()
    held_by: str = ""
    pools: Mapping[Role, PoolLoad] = field(default_factory=dict)
    needed_workers: int = 0
