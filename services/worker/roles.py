"""Mounts a role on an engine: the scheduler that the engine's thread runs, and the servicer that feeds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpc import aio

from baton.decode import servicer as decode_servicer
from baton.decode.scheduler import DecodeScheduler
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.fleet import Role, WorkerLoad
from baton.kvtransfer.group import Handoffs
from baton.prefill import servicer as prefill_servicer
from baton.prefill.scheduler import PrefillScheduler
from baton.worker.config import WorkerConfig
from baton.worker.live_profile import LiveProfile
from baton.worker.timed_scheduler import TimedScheduler


@dataclass(frozen=True, slots=True)
class MountedRole:
    """service: full gRPC name. mount: adds the servicer to a server. load: readable from any thread."""

    service: str
    mount: Callable[[aio.Server], None]
    load: Callable[[], WorkerLoad]


def mount_role(
    config: WorkerConfig, engine: Engine, loop: EngineLoop, agent: Handoffs, profile: LiveProfile
) -> MountedRole:
    """Builds the role of `config` and starts the engine's thread with its scheduler, whose steps correct
    `profile`."""
    if config.role is Role.PREFILL:
        prefill = PrefillScheduler(engine, agent, config.prefill, lambda tail: profile.note_tail(*tail))
        loop.start(TimedScheduler(prefill, engine, profile))
        servicer = prefill_servicer.PrefillServicer(engine, loop, prefill, agent)
        return MountedRole(prefill_servicer.SERVICE, servicer.mount, prefill.load)
    receiver = decode_servicer.DecodeServicer(engine, loop)
    decode = DecodeScheduler(engine, agent, config.decode, loop.post, receiver.on_reports)
    receiver.attach(decode)
    loop.start(TimedScheduler(decode, engine, profile))
    return MountedRole(decode_servicer.SERVICE, receiver.mount, decode.load)
