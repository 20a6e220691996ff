"""What a router process is started with; complete when built, then passed down."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from baton.discovery.base import RegistryAccess
from baton.router.api.settings import ApiSettings
from baton.router.elastic import PlannerSettings
from baton.router.request_flow import FlowLimits


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """model: folder with the tokenizer and chat template. served_model_names: the first is the name in answers,
    the others are aliases. host, port: of HTTP. registry: URI of the one to follow; empty for
    the router's own, whose gRPC is at registry_host, registry_port, and from which a worker silent for longer than
    lease_s is dropped. secret: shared by the whole fleet. router_id: unique to this run."""

    model: Path
    served_model_names: tuple[str, ...]
    secret: bytes
    host: str = "127.0.0.1"
    port: int = 8000
    registry_host: str = "127.0.0.1"
    registry_port: int = 8100
    lease_s: float = 3.0
    registry: str = ""
    registry_access: RegistryAccess = field(default_factory=RegistryAccess)
    drain_timeout_s: float = 30.0
    event_log: Path | None = None
    api: ApiSettings = field(default_factory=ApiSettings)
    flow: FlowLimits = field(default_factory=FlowLimits)
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    router_id: str = field(default_factory=lambda: f"router-{secrets.token_hex(4)}")
