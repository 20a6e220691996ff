"""A fleet for the planner that is a fluid: demand flows to the ready workers of a pool in equal parts, and what
they cannot do piles up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baton.fleet import Role, WorkerProfile
from baton.router.planner.actions import Flip, Plan
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rules import PlannerRules

P, D = Role.PREFILL, Role.DECODE
TICK_S = 2.0
PROFILE = WorkerProfile(10_000.0, 0.02, 1e10, 0.0, 0.0002, 0.0)
ONE_WORKER = 8500.0
"""Prompt tokens/s at which a prefill worker of PROFILE is under pressure 1."""
ONE_DECODE_WORKER = 351
"""Sequences on a decode worker of PROFILE under pressure 1."""
RULES = PlannerRules()
Decide = Callable[[History, PlannerRules, float], Plan]


def flips_of(plan: Plan) -> list[Flip]:
    """All that a planner does which does not count workers."""
    flips = [action for action in plan.actions if isinstance(action, Flip)]
    assert len(flips) == len(plan.actions)
    return flips


@dataclass
class Fluid:
    """prefill, decode: workers at the start. Flips take `flip_s`, for which the worker is not ready."""

    prefill: int
    decode: int
    rules: PlannerRules = RULES
    flip_s: float = 1.0
    decide: Decide = decide
    profiles: dict[str, WorkerProfile] = field(default_factory=dict)
    now_s: float = 0.0
    plans: list[tuple[float, Plan]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roles = {f"p{n}": P for n in range(self.prefill)} | {f"d{n}": D for n in range(self.decode)}
        self.busy_s = dict.fromkeys(self.roles, 0.0)
        self.backlog_tokens = 0.0
        self.ready_at_s: dict[str, tuple[float, Role]] = {}
        self.history = History(self.rules.window_s, self.rules.cooldown_s)

    def count(self, role: Role) -> int:
        return sum(own is role for own in self.roles.values())

    def run(self, seconds: float, prompt_tokens_per_s: float, sequences: float) -> list[Flip]:
        """`sequences` are there at any time. Returns the flips."""
        before = len(self.plans)
        for _ in range(int(seconds / TICK_S)):
            self.tick(prompt_tokens_per_s, sequences)
        return [flip for _, plan in self.plans[before:] for flip in flips_of(plan)]

    def tick(self, prompt_tokens_per_s: float, sequences: float) -> None:
        self.now_s += TICK_S
        for worker_id, (ready_at_s, role) in list(self.ready_at_s.items()):
            if ready_at_s <= self.now_s:
                self.roles[worker_id] = role
                del self.ready_at_s[worker_id]
        self._compute(prompt_tokens_per_s)
        statuses = tuple(self._status(worker_id, sequences) for worker_id in self.roles)
        self.history.observe(Observation(self.now_s, statuses, self.now_s % 86400))
        plan = self.decide(self.history, self.rules, self.now_s)
        self.plans.append((self.now_s, plan))
        for action in flips_of(plan):
            self.history.flip_ordered(action.worker_id, action.role, self.now_s)
            self.ready_at_s[action.worker_id] = self.now_s + self.flip_s, action.role

    def ready(self, role: Role) -> list[str]:
        return [w for w, own in self.roles.items() if own is role and w not in self.ready_at_s]

    def profile(self, worker_id: str) -> WorkerProfile:
        return self.profiles.get(worker_id, PROFILE)

    def _compute(self, prompt_tokens_per_s: float) -> None:
        self.backlog_tokens += prompt_tokens_per_s * TICK_S
        computing = self.ready(P)
        rate = sum(self.profile(worker_id).prefill_rate for worker_id in computing)
        done_tokens = min(self.backlog_tokens, rate * TICK_S)
        self.backlog_tokens -= done_tokens
        for worker_id in computing:
            self.busy_s[worker_id] += done_tokens / rate

    def _status(self, worker_id: str, sequences: float) -> WorkerStatus:
        role = self.roles[worker_id]
        pool = max(1, len(self.ready(role)))
        is_ready = worker_id not in self.ready_at_s
        queued_tokens = int(self.backlog_tokens / pool) if role is P and is_ready else 0
        running = int(sequences / pool) if role is D and is_ready else 0
        return WorkerStatus(
            worker_id,
            role,
            is_ready,
            self.profile(worker_id),
            queued_tokens,
            self.busy_s[worker_id],
            running,
            running_tokens=100 * running,
            held_tokens=100 * running,
            kv_tokens=1_000_000,
        )
