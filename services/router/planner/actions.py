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


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision. reason: for people. held_by: the rule that stands against acting, in one word; empty where
    there are actions. pools: what it was decided on; empty where nothing was known yet."""

    reason: str
    actions: tuple[Flip, ...] = ()
    held_by: str = ""
    pools: Mapping[Role, PoolLoad] = field(default_factory=dict)
