"""`baton prefill` and `baton decode`: one set of options, for a worker may serve in either role."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable

import uvloop

from baton.cli import options as opt
from baton.cli.cores import read_cores
from baton.cli.process_setup import (
    checked_advertise,
    checked_secret,
    log_to_stderr,
    model_folder,
    served_names,
)


def worker_command(role: str) -> Callable[..., None]:
    """The command that runs one worker of `role` until it is told to stop."""

    def run(
        model: opt.Model = None,
        registry: opt.Registry = "127.0.0.1:8100",
        registry_token: opt.RegistryToken = "",
        registry_ca: opt.RegistryCa = None,
        registry_certificate: opt.RegistryCertificate = None,
        registry_key: opt.RegistryKey = None,
        worker_id: opt.WorkerId = "",
        host: opt.Host = "127.0.0.1",
        port: opt.WorkerPort = 0,
        kv_port: opt.KvPort = 0,
        kv_events: opt.KvEvents = opt.Switch.ON,
        kv_events_port: opt.KvEventsPort = 0,
        advertise: opt.Advertise = "",
        dtype: opt.DtypeOption = opt.Dtype.AUTO,
        device: opt.Device = "cpu",
        attention: opt.Attention = "auto",
        max_model_len: opt.MaxModelLen = None,
        kv_blocks: opt.KvBlocks = None,
        block_size: opt.BlockSize = 16,
        tp: opt.Tp = 1,
        transport: opt.Transport = "auto",
        threads: opt.Threads = None,
        cpus: opt.Cpus = None,
        chunk_tokens: opt.ChunkTokens = 512,
        chunk_ms: opt.ChunkMs = None,
        max_running: opt.MaxRunning = 256,
        cost_per_hour: opt.CostPerHour = 0.0,
        drain_timeout: opt.DrainTimeout = 30.0,
        step_timeout: opt.StepTimeout = 120.0,
        spot_notice: opt.SpotNotice = None,
        secret: opt.Secret = "",
        log_level: opt.LogLevelOption = opt.LogLevel.INFO,
    ) -> None:
        from baton.decode.scheduler import DecodeLimits
        from baton.discovery.base import RegistryAccess
        from baton.engine.engine_config import EngineConfig
        from baton.fleet import Role
        from baton.prefill.scheduler import PrefillLimits
        from baton.worker.config import WorkerConfig
        from baton.worker.notices import NoticeSource
        from baton.worker.worker import run_worker

        if cpus is not None:
            os.sched_setaffinity(0, read_cores(cpus))
        folder = model_folder(model)
        chunk_s = None if chunk_ms is None else chunk_ms / 1000 or math.inf
        config = WorkerConfig(
            role=Role(role),
            worker_id=worker_id or f"{role}-{socket.gethostname()}-{os.getpid()}",
            model_name=served_names(None, folder)[0],
            engine=EngineConfig(
                folder, dtype.value, device, block_size, kv_blocks, max_model_len, attention, threads, tp
            ),
            registry=registry,
            registry_access=RegistryAccess(registry_token, registry_ca, registry_certificate, registry_key),
            secret=checked_secret(secret),
            host=host,
            port=port,
            kv_port=kv_port,
            advertise_host=checked_advertise(host, advertise),
            kv_events=kv_events is opt.Switch.ON,
            kv_events_port=kv_events_port,
            schemes=() if transport == "auto" else tuple(transport.split(",")),
            drain_timeout_s=drain_timeout,
            step_timeout_s=step_timeout,
            spot_notice=NoticeSource.parse(spot_notice) if spot_notice else None,
            cost_per_hour=cost_per_hour,
            prefill=PrefillLimits(chunk_tokens, chunk_s=chunk_s),
            decode=DecodeLimits(max_running, prefill_chunk_tokens=chunk_tokens, prefill_chunk_s=chunk_s),
        )
        log_to_stderr(config.worker_id, log_level)
        uvloop.run(run_worker(config))

    return run
