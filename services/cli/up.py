"""`baton up`: a whole fleet on this machine."""

from __future__ import annotations

from baton.cli import options as opt
from baton.cli.engine_options import EngineOptions
from baton.cli.fleet_options import FleetOptions
from baton.cli.planner_options import LOCAL, PlannerOptions
from baton.cli.process_setup import model_folder, served_names
from baton.cli.serving_options import ServingOptions
from baton.cli.worker_options import WorkerOptions
from baton.fleet import Role


def up(
    *,
    model: opt.Model = None,
    fleet: FleetOptions,
    host: opt.Host = "127.0.0.1",
    port: opt.HttpPort = 8000,
    served_model_name: opt.ServedModelName = None,
    engine: EngineOptions,
    workers: WorkerOptions,
    serving: ServingOptions,
    planner: PlannerOptions,
    max_restarts: opt.MaxRestarts = 5,
    restart_window: opt.RestartWindow = 300.0,
    log_level: opt.LogLevelOption = opt.LogLevel.WARNING,
) -> None:
    """Serve a model on this machine: router and workers, each a process that is started again when it dies.

    Example: baton up --model ./Llama-3.2-1B-Instruct --prefill 1 --decode 2 --port 8001
    """
    from baton.cli.cluster import Cluster, ClusterConfig
    from baton.cli.supervision import RestartLimits

    folder = model_folder(model)
    router_args = {
        "model": folder,
        "host": host,
        "served-model-name": served_names(served_model_name, folder),
        **serving.arguments(),
        **planner.arguments(),
        "log-level": log_level.value,
    }
    worker_args = {
        "model": folder,
        **engine.arguments(),
        **workers.arguments(),
        "threads": fleet.threads_each(),
        "log-level": log_level.value,
    }
    config = ClusterConfig(
        routers=fleet.routers,
        prefill_workers=fleet.prefill,
        decode_workers=fleet.decode,
        host=host,
        port=port,
        api_key=(serving.api_key or [""])[0],
        restarts=RestartLimits(max_restarts, restart_window),
        router_args=router_args,
        worker_args=worker_args,
        prefill_args={"tp": fleet.tp_of(Role.PREFILL)},
        decode_args={"tp": fleet.tp_of(Role.DECODE)},
        cores=fleet.cores(),
        router_secrets={**serving.secrets(), **planner.secrets()},
        is_scaled=planner.scaler == LOCAL,
    )
    raise SystemExit(Cluster(config).run())
