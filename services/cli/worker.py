"""`baton prefill` and `baton decode`: one set of options, for a worker may serve in either role."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import uvloop

from baton.cli import options as opt
from baton.cli.cores import read_cores
from baton.cli.engine_options import EngineOptions
from baton.cli.process_setup import (
    checked_advertise,
    checked_secret,
    log_to_stderr,
    model_folder,
    served_names,
)
from baton.cli.registry_options import RegistryOptions
from baton.cli.worker_options import WorkerOptions
from baton.loaded import load_uncollected


def worker_command(role: str) -> Callable[..., None]:
    """The command that runs one worker of `role` until it is told to stop."""

    def run(
        *,
        model: opt.Model = None,
        registry: opt.Registry = "127.0.0.1:8100",
        consul: RegistryOptions,
        worker_id: opt.WorkerId = "",
        host: opt.Host = "127.0.0.1",
        port: opt.WorkerPort = 0,
        kv_port: opt.KvPort = 0,
        kv_events_port: opt.KvEventsPort = 0,
        advertise: opt.Advertise = "",
        engine: EngineOptions,
        work: WorkerOptions,
        tp: opt.Tp = 1,
        threads: opt.Threads = None,
        cpus: opt.Cpus = None,
        drain_timeout: opt.DrainTimeout = 30.0,
        secret: opt.Secret = "",
        log_level: opt.LogLevelOption = opt.LogLevel.INFO,
    ) -> None:
        load_uncollected()
        from baton.fleet import Role
        from baton.worker.config import WorkerConfig
        from baton.worker.worker import run_worker

        if cpus is not None:
            os.sched_setaffinity(0, read_cores(cpus))
        folder = model_folder(model)
        config = WorkerConfig(
            role=Role(role),
            worker_id=worker_id or f"{role}-{socket.gethostname()}-{os.getpid()}",
            model_name=served_names(None, folder)[0],
            engine=engine.config(folder, threads, tp),
            registry=registry,
            registry_access=consul.access(),
            secret=checked_secret(secret),
            host=host,
            port=port,
            kv_port=kv_port,
            advertise_host=checked_advertise(host, advertise),
            kv_events=work.kv_events is opt.Switch.ON,
            kv_events_port=kv_events_port,
            schemes=work.schemes,
            drain_timeout_s=drain_timeout,
            step_timeout_s=work.step_timeout,
            spot_notice=work.notices,
            cost_per_hour=work.cost_per_hour,
            prefill=work.prefill(),
            decode=work.decode(),
        )
        log_to_stderr(config.worker_id, log_level)
        uvloop.run(run_worker(config))

    return run
