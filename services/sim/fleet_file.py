"""The fleet that is simulated, as a TOML file:

    chunk-tokens = 8192

    [objectives]
    ttft = 2.0
    tpot = 0.05

    [[pool]]
    role = "prefill"
    workers = 16
    profile = "h100-80g-llama-8b"

    [planner]  # if the workers are to change roles
    flips-per-hour = 60
    max-workers = 32  # if they are to come and leave as well

Keys have the names, meanings and defaults of `baton up`. A profile is one of Baton's own by name, or a file of the
same form by its path from the fleet's file.
"""

from __future__ import annotations

import math
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec

from baton.errors import ConfigError
from baton.fleet import Role, WorkerProfile
from baton.router.planner.rules import Bounds, PlannerRules
from baton.router.snapshot import Disaggregation
from baton.sim.toml_file import read_toml

_PROFILES = Path(str(files("baton.sim"))) / "profiles"
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Spread = Annotated[float, msgspec.Meta(ge=0, le=10)]  # of a logarithm: e^10 is a factor of 22,026
_RULES = PlannerRules()
_Count = Annotated[int, msgspec.Meta(ge=1)]


class HardwareProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A kind of worker: speeds as `baton.fleet.WorkerProfile` has them, its memory, its price (USD an hour). Each
    simulated worker is on a host of its own."""

    prefill_tokens_per_s: _Positive
    decode_step_s: _Positive
    copy_bytes_per_s: _Positive
    kv_bytes_per_token: _Positive
    kv_tokens: _Count
    prefill_s_per_pair: _NotNegative = 0.0
    decode_s_per_sequence: _NotNegative = 0.0
    decode_s_per_context_token: _NotNegative = 0.0
    prefill_pass_s: _NotNegative = 0.0
    handoff_latency_s: _NotNegative = 0.0
    step_spread: _Spread = 0.0
    handoff_spread: _Spread = 0.0
    cost_per_hour: _NotNegative = 0.0

    def speeds(self) -> WorkerProfile:
        return WorkerProfile(**{name: getattr(self, name) for name in SPEEDS})

    @classmethod
    def of(cls, speeds: WorkerProfile, kv_bytes_per_token: int, kv_tokens: int) -> HardwareProfile:
        """A worker's own figures, without the limits that it was started with: a fleet's file has its own."""
        measured = {name: getattr(speeds, name) for name in SPEEDS}
        return cls(**measured, kv_bytes_per_token=kv_bytes_per_token, kv_tokens=kv_tokens)


SPEEDS = tuple(
    field.name for field in fields(WorkerProfile) if field.name in HardwareProfile.__struct_fields__
)
"""What a profile's file says of a worker, and the worker of itself."""


class _PoolTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    role: Role
    workers: _Count
    profile: str
    name: str = ""
    cost_per_hour: _NotNegative | None = None


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Seconds; a request that meets both counts as good."""

    ttft: _Positive = 2.0
    tpot: _Positive = 0.1


class _PlannerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Names and defaults as of the options of `baton router` that begin with --planner, without that; bounds, which
    are one option there, are two keys. window: seconds that a decision looks back. interval: seconds between two.
    flip, start: seconds that a worker takes to change its role, and to come once it is ordered."""

    min_prefill: Annotated[int, msgspec.Meta(ge=0)] = 1
    max_prefill: _Count | None = None
    min_decode: _Count = 1
    max_decode: _Count | None = None
    flips_per_hour: _Count | None = None
    cooldown: _Positive = _RULES.cooldown_s
    window: _Positive = _RULES.window_s
    interval: _Positive = 2.0
    flip: _Positive = 1.0
    min_workers: _Count | None = None
    max_workers: _Count | None = None
    start: _Positive = 60.0
    scale_in_after: Annotated[float, msgspec.Meta(ge=10)] = _RULES.scale_in_after_s
    scales_per_hour: Annotated[int, msgspec.Meta(ge=0)] = _RULES.scales_per_hour

    def __post_init__(self) -> None:
        """Raises ValueError for bounds that nobody can keep to; `read_toml` says where."""
        for what, least, most in (
            ("prefill", self.min_prefill, self.max_prefill),
            ("decode", self.min_decode, self.max_decode),
            ("workers", self.min_workers or 1, self.max_workers),
        ):
            if most is not None and most < least:
                raise ValueError(f"max-{what} is {most}, and min-{what} is {least}")
        if self.min_workers is not None and self.max_workers is None:
            raise ValueError("workers cost money: min-workers needs max-workers")

    def workers(self) -> Bounds | None:
        return None if self.max_workers is None else Bounds(self.min_workers or 1, self.max_workers)


class _FleetTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    pool: Annotated[list[_PoolTable], msgspec.Meta(min_length=1)]
    objectives: Objectives = Objectives()
    chunk_tokens: _Count = 512
    chunk_ms: _NotNegative | None = None
    max_running: _Count = 256
    max_requests: _Count = 1024
    max_queue: Annotated[int, msgspec.Meta(ge=0)] = 512
    queue_timeout: _Positive = 60.0
    local_prefill_tokens: Annotated[int, msgspec.Meta(ge=0)] = 64
    disaggregation: Disaggregation = Disaggregation.AUTO
    routers: _Count = 1
    heartbeat: _NotNegative = 0.0
    handoff_start: _NotNegative = 0.0
    kv_events: bool = False
    planner: _PlannerTable | None = None


class Pool(msgspec.Struct, frozen=True):
    name: str
    role: Role
    workers: int
    hardware: HardwareProfile
    cost_per_hour: float


class ElasticSpec(msgspec.Struct, frozen=True):
    """interval_s: between two decisions of the planner. flip_s: that a worker takes to change roles, after what it
    had is finished. start_s: from the order until a new worker is there."""

    rules: PlannerRules
    interval_s: float = 2.0
    flip_s: float = 1.0
    start_s: float = 60.0


class FleetSpec(msgspec.Struct, frozen=True):
    """Everything about the fleet that is not the request's: pools, and the limits of router and schedulers.
    elastic: None where workers keep their roles. handoff_start_s: from a prompt's first token until its decode
    worker has heard of it from the router."""

    pools: tuple[Pool, ...]
    objectives: Objectives
    chunk_tokens: int
    max_running: int
    max_requests: int
    queue_timeout_s: float
    local_prefill_tokens: int
    elastic: ElasticSpec | None = None
    max_waiting: int = 512
    disaggregation: Disaggregation = Disaggregation.AUTO
    routers: int = 1
    heartbeat_s: float = 0.0
    handoff_start_s: float = 0.0
    kv_events: bool = False
    chunk_s: float | None = None


def read_fleet(path: Path) -> FleetSpec:
    """Raises ConfigError naming file, line and field."""
    table = read_toml(path, _FleetTable)
    pools = tuple(_pool(path, number, pool) for number, pool in enumerate(table.pool))
    names = [pool.name for pool in pools]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{path}: pools need names of their own, these are {', '.join(names)}", field="name"
        )
    if not any(pool.role is Role.DECODE for pool in pools):
        raise ConfigError(f'{path}: a fleet needs a pool with role = "decode"', field="pool")
    return FleetSpec(
        pools=pools,
        objectives=table.objectives,
        chunk_tokens=table.chunk_tokens,
        chunk_s=None if table.chunk_ms is None else table.chunk_ms / 1000 or math.inf,
        max_running=table.max_running,
        max_requests=table.max_requests,
        max_waiting=table.max_queue,
        queue_timeout_s=table.queue_timeout,
        local_prefill_tokens=table.local_prefill_tokens,
        disaggregation=table.disaggregation,
        routers=table.routers,
        heartbeat_s=table.heartbeat,
        handoff_start_s=table.handoff_start,
        kv_events=table.kv_events,
        elastic=None if table.planner is None else _elastic(table.planner, table.objectives),
    )


def _elastic(table: _PlannerTable, objectives: Objectives) -> ElasticSpec:
    rules = PlannerRules(
        ttft_s=objectives.ttft,
        tpot_s=objectives.tpot,
        prefill=Bounds(table.min_prefill, table.max_prefill),
        decode=Bounds(table.min_decode, table.max_decode),
        window_s=table.window,
        cooldown_s=table.cooldown,
        flips_per_hour=table.flips_per_hour,
        workers=table.workers(),
        scale_in_after_s=table.scale_in_after,
        scales_per_hour=table.scales_per_hour,
    )
    return ElasticSpec(rules, table.interval, table.flip, table.start)


def with_planner(spec: FleetSpec) -> FleetSpec:
    """The same fleet with the planner's default rules, and the fleet's own objectives."""
    return msgspec.structs.replace(spec, elastic=_elastic(_PlannerTable(), spec.objectives))


def profile_names() -> list[str]:
    return sorted(path.stem for path in _PROFILES.glob("*.toml"))


def read_profile(name: str, beside: Path) -> HardwareProfile:
    """One of Baton's own by name, or a file by its path from the folder `beside`."""
    if name in profile_names():
        return read_toml(_PROFILES / f"{name}.toml", HardwareProfile)
    if not name.endswith(".toml"):
        raise ConfigError(
            f"profile {name!r} is unknown (choices: {', '.join(profile_names())}, or a .toml file)",
            field="profile",
        )
    return read_toml(beside / name, HardwareProfile)


def _pool(path: Path, number: int, table: _PoolTable) -> Pool:
    try:
        hardware = read_profile(table.profile, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: pool {number}: {error.message}", field=error.field) from error
    cost = hardware.cost_per_hour if table.cost_per_hour is None else table.cost_per_hour
    name = table.name or f"{table.role.value}-{table.profile.removesuffix('.toml')}"
    return Pool(name, table.role, table.workers, hardware, cost)
