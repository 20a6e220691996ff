"""What a worker process is started with; complete when built, then passed down."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.decode.limits import DecodeLimits
from baton.discovery.base import RegistryAccess
from baton.engine.engine_config import EngineConfig
from baton.fleet import Role
from baton.prefill.scheduler import PrefillLimits
from baton.worker.notices import NoticeSource


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """host, port: where gRPC listens (port 0: chosen by the system). kv_port: where the tcp transport does.
    advertise_host: what others dial, empty for `host`. registry: URI or host:port, as
    `baton.discovery.open_registry` takes it. secret: shared by the whole fleet. schemes: KV transports, in order of
    preference; empty for all that work here. kv_events: whether changes of the prefix cache are published, from
    kv_events_port on (0: from free ports). drain_timeout_s: how long SIGTERM lets requests finish.
    step_timeout_s: how long one step of the engine may take before the process ends itself (see `watchdog`).
    cost_per_hour: in the fleet's currency, for its reports. spot_notice: where the end of this machine would be
    told, upon which the worker drains."""

    role: Role
    worker_id: str
    model_name: str
    engine: EngineConfig
    registry: str
    secret: bytes
    host: str = "127.0.0.1"
    port: int = 0
    kv_port: int = 0
    advertise_host: str = ""
    schemes: tuple[str, ...] = ()
    kv_events: bool = True
    kv_events_port: int = 0
    drain_timeout_s: float = 30.0
    step_timeout_s: float = 120.0
    heartbeat_s: float = 0.25
    cost_per_hour: float = 0.0
    spot_notice: NoticeSource | None = None
    registry_access: RegistryAccess = field(default_factory=RegistryAccess)
    prefill: PrefillLimits = field(default_factory=PrefillLimits)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
