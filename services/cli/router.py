"""`baton router`: one router."""

from __future__ import annotations

import uvloop

from baton.cli import options as opt
from baton.cli.planner_options import PlannerOptions
from baton.cli.process_setup import checked_secret, log_to_stderr, model_folder, served_names
from baton.cli.registry_options import RegistryOptions
from baton.cli.serving_options import ServingOptions
from baton.loaded import load_uncollected


def router(
    *,
    model: opt.Model = None,
    host: opt.Host = "127.0.0.1",
    port: opt.HttpPort = 8000,
    registry_host: opt.RegistryHost = "",
    registry_port: opt.RegistryPort = 8100,
    registry: opt.Registry = "",
    consul: RegistryOptions,
    served_model_name: opt.ServedModelName = None,
    serving: ServingOptions,
    planner: PlannerOptions,
    drain_timeout: opt.DrainTimeout = 30.0,
    secret: opt.Secret = "",
    log_level: opt.LogLevelOption = opt.LogLevel.INFO,
) -> None:
    """Run one router: HTTP API, request flow, and the registry that workers join, unless --registry is another.

    Example: BATON_SECRET=... baton router --model ./model --host 0.0.0.0 --port 8000 --registry-port 8100
    """
    load_uncollected()
    from baton.router.config import RouterConfig
    from baton.router.router import run_router

    log_to_stderr("router", log_level)
    folder = model_folder(model)
    config = RouterConfig(
        model=folder,
        secret=checked_secret(secret),
        host=host,
        port=port,
        registry_host=registry_host or host,
        registry_port=registry_port,
        registry=registry,
        registry_access=consul.access(),
        served_model_names=tuple(served_names(served_model_name, folder)),
        drain_timeout_s=drain_timeout,
        event_log=serving.event_log,
        planner=planner.settings(),
        api=serving.api(),
        flow=serving.flow(),
    )
    uvloop.run(run_router(config))
