"""The `baton` command: every option of every process, checked before anything starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from typer.core import TyperGroup

from baton import __version__
from baton.cli import options as opt
from baton.cli.cores import available_cores, share_out
from baton.cli.measure import profile
from baton.cli.plan import plan
from baton.cli.planner_rules import LOCAL, PlannerOptions
from baton.cli.process_setup import (
    checked_policy,
    checked_secret,
    log_to_stderr,
    model_folder,
    served_names,
)
from baton.cli.settings import CONFIG_VARIABLE, check_environment, read_config_file
from baton.cli.sim import sim
from baton.cli.worker import worker_command
from baton.errors import BatonError
from baton.router.admission import SloPolicy
from baton.router.elastic import PlannerMode
from baton.router.policies import DEFAULT_POLICY
from baton.router.scalers import ScalerAddress
from baton.router.snapshot import Disaggregation

app = typer.Typer(
    name="baton",
    help="Disaggregated LLM serving: prefill and decode on separate pools of workers.\n\n"
    "Every option can be given as an environment variable too (--max-model-len: BATON_MAX_MODEL_LEN) or in a "
    "TOML file; the command line wins over the environment, and that over the file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point; a BatonError ends the process with one line and status 2."""
    try:
        app()
    except BatonError as error:
        where = f" [{error.field}]" if error.field else ""
        print(f"baton: {error.message}{where}", file=sys.stderr)
        raise SystemExit(2) from None


@app.callback()
def configure(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file, one table a command, as [up] with port = 8001.", envvar=CONFIG_VARIABLE
        ),
    ] = None,
) -> None:
    group = context.command
    assert isinstance(group, TyperGroup), "the callback belongs to the group of all commands"
    check_environment(group)
    if config is not None:
        context.default_map = read_config_file(config, group)


@app.command()
def up(
    model: opt.Model = None,
    routers: opt.Routers = 1,
    prefill: opt.PrefillWorkers = 1,
    decode: opt.DecodeWorkers = 1,
    host: opt.Host = "127.0.0.1",
    port: opt.HttpPort = 8000,
    served_model_name: opt.ServedModelName = None,
    dtype: opt.DtypeOption = opt.Dtype.AUTO,
    device: opt.Device = "cpu",
    attention: opt.Attention = "auto",
    max_model_len: opt.MaxModelLen = None,
    kv_blocks: opt.KvBlocks = None,
    block_size: opt.BlockSize = 16,
    tp: opt.Tp = 1,
    prefill_tp: opt.PrefillTp = None,
    decode_tp: opt.DecodeTp = None,
    transport: opt.Transport = "auto",
    kv_events: opt.KvEvents = opt.Switch.ON,
    threads: opt.Threads = None,
    pin: opt.Pin = True,
    chunk_tokens: opt.ChunkTokens = 512,
    chunk_ms: opt.ChunkMs = None,
    max_running: opt.MaxRunning = 256,
    max_requests: opt.MaxRequests = 1024,
    max_queue: opt.MaxQueue = 512,
    queue_timeout: opt.QueueTimeout = 60.0,
    request_timeout: opt.RequestTimeout = 600.0,
    slo_policy: opt.SloPolicyOption = SloPolicy.NONE,
    slo_ttft: opt.SloTtft = None,
    slo_tpot: opt.SloTpot = None,
    rejoin_timeout: opt.RejoinTimeout = 30.0,
    local_prefill_tokens: opt.LocalPrefillTokens = 64,
    disaggregation: opt.DisaggregationOption = Disaggregation.AUTO,
    policy: opt.Policy = DEFAULT_POLICY,
    cost_per_hour: opt.CostPerHour = 0.0,
    api_key: opt.ApiKey = None,
    event_log: opt.EventLog = None,
    planner: opt.Planner = PlannerMode.OFF,
    planner_ttft: opt.PlannerTtft = 2.0,
    planner_tpot: opt.PlannerTpot = 0.1,
    planner_prefill: opt.PlannerPrefill = "1-",
    planner_decode: opt.PlannerDecode = "1-",
    planner_flips_per_hour: opt.PlannerFlips = 30,
    planner_cooldown: opt.PlannerCooldown = 120.0,
    planner_window: opt.PlannerWindow = None,
    rescue_after: opt.RescueAfter = 5.0,
    planner_workers: opt.PlannerWorkers = None,
    planner_scale_in_after: opt.PlannerScaleIn = 300.0,
    planner_scales_per_hour: opt.PlannerScales = 12,
    scaler: opt.ScalerOption = "none",
    scaler_token: opt.ScalerToken = "",
    scaler_key: opt.ScalerKey = "",
    max_restarts: opt.MaxRestarts = 5,
    restart_window: opt.RestartWindow = 300.0,
    step_timeout: opt.StepTimeout = 120.0,
    spot_notice: opt.SpotNotice = None,
    log_level: opt.LogLevelOption = opt.LogLevel.WARNING,
) -> None:
    """Serve a model on this machine: a router, N prefill and M decode workers, each a process of its own that is
    started again when it dies.

    Example: baton up --model ./Llama-3.2-1B-Instruct --prefill 1 --decode 2 --port 8001
    """
    from baton.cli.cluster import Cluster, ClusterConfig
    from baton.cli.supervision import RestartLimits

    folder = model_folder(model)
    planner_options = PlannerOptions(
        planner,
        planner_ttft,
        planner_tpot,
        planner_prefill,
        planner_decode,
        planner_flips_per_hour,
        planner_cooldown,
        planner_window,
        rescue_after,
        planner_workers,
        planner_scale_in_after,
        planner_scales_per_hour,
        ScalerAddress(scaler, scaler_token, scaler_key),
    )
    router_args = {
        "model": folder,
        "host": host,
        "served-model-name": served_names(served_model_name, folder),
        "max-requests": max_requests,
        "max-queue": max_queue,
        "queue-timeout": queue_timeout,
        "request-timeout": request_timeout,
        "slo-policy": slo_policy.value,
        "slo-ttft": slo_ttft,
        "slo-tpot": slo_tpot,
        "rejoin-timeout": rejoin_timeout,
        "local-prefill-tokens": local_prefill_tokens,
        "disaggregation": disaggregation.value,
        "policy": checked_policy(policy),
        "api-key": api_key,
        "event-log": event_log,
        **planner_options.arguments(),
        "log-level": log_level.value,
    }
    ranks = {f"prefill-{number}": prefill_tp or tp for number in range(prefill)}
    ranks |= {f"decode-{number}": decode_tp or tp for number in range(decode)}
    worker_args = {
        "model": folder,
        "dtype": dtype.value,
        "device": device,
        "attention": attention,
        "max-model-len": max_model_len,
        "kv-blocks": kv_blocks,
        "block-size": block_size,
        "transport": transport,
        "kv-events": kv_events.value,
        "threads": threads or max(1, (os.cpu_count() or 1) // sum(ranks.values())),
        "chunk-tokens": chunk_tokens,
        "chunk-ms": chunk_ms,
        "step-timeout": step_timeout,
        "spot-notice": spot_notice,
        "cost-per-hour": cost_per_hour,
        "log-level": log_level.value,
    }
    config = ClusterConfig(
        routers=routers,
        prefill_workers=prefill,
        decode_workers=decode,
        host=host,
        port=port,
        api_key=(api_key or [""])[0],
        restarts=RestartLimits(max_restarts, restart_window),
        router_args=router_args,
        worker_args=worker_args,
        prefill_args={"tp": prefill_tp or tp},
        decode_args={"tp": decode_tp or tp, "max-running": max_running},
        cores=share_out(available_cores(), ranks) if pin else {},
        router_secrets=planner_options.secrets(),
        is_scaled=scaler == LOCAL,
    )
    raise SystemExit(Cluster(config).run())


@app.command()
def router(
    model: opt.Model = None,
    host: opt.Host = "127.0.0.1",
    port: opt.HttpPort = 8000,
    registry_host: opt.RegistryHost = "",
    registry_port: opt.RegistryPort = 8100,
    registry: opt.Registry = "",
    registry_token: opt.RegistryToken = "",
    registry_ca: opt.RegistryCa = None,
    registry_certificate: opt.RegistryCertificate = None,
    registry_key: opt.RegistryKey = None,
    served_model_name: opt.ServedModelName = None,
    max_requests: opt.MaxRequests = 1024,
    max_queue: opt.MaxQueue = 512,
    queue_timeout: opt.QueueTimeout = 60.0,
    request_timeout: opt.RequestTimeout = 600.0,
    slo_policy: opt.SloPolicyOption = SloPolicy.NONE,
    slo_ttft: opt.SloTtft = None,
    slo_tpot: opt.SloTpot = None,
    rejoin_timeout: opt.RejoinTimeout = 30.0,
    local_prefill_tokens: opt.LocalPrefillTokens = 64,
    disaggregation: opt.DisaggregationOption = Disaggregation.AUTO,
    policy: opt.Policy = DEFAULT_POLICY,
    api_key: opt.ApiKey = None,
    event_log: opt.EventLog = None,
    planner: opt.Planner = PlannerMode.OFF,
    planner_ttft: opt.PlannerTtft = 2.0,
    planner_tpot: opt.PlannerTpot = 0.1,
    planner_prefill: opt.PlannerPrefill = "1-",
    planner_decode: opt.PlannerDecode = "1-",
    planner_flips_per_hour: opt.PlannerFlips = 30,
    planner_cooldown: opt.PlannerCooldown = 120.0,
    planner_window: opt.PlannerWindow = None,
    rescue_after: opt.RescueAfter = 5.0,
    planner_workers: opt.PlannerWorkers = None,
    planner_scale_in_after: opt.PlannerScaleIn = 300.0,
    planner_scales_per_hour: opt.PlannerScales = 12,
    scaler: opt.ScalerOption = "none",
    scaler_token: opt.ScalerToken = "",
    scaler_key: opt.ScalerKey = "",
    drain_timeout: opt.DrainTimeout = 30.0,
    secret: opt.Secret = "",
    log_level: opt.LogLevelOption = opt.LogLevel.INFO,
) -> None:
    """Run one router: HTTP API, request flow, and the embedded registry that workers join, unless --registry
    names another where they meet.

    Example: BATON_SECRET=... baton router --model ./model --host 0.0.0.0 --port 8000 --registry-port 8100
    """
    from baton.discovery.base import RegistryAccess
    from baton.request import Objectives
    from baton.router.api.settings import ApiSettings
    from baton.router.config import RouterConfig
    from baton.router.request_flow import FlowLimits
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
        registry_access=RegistryAccess(registry_token, registry_ca, registry_certificate, registry_key),
        served_model_names=tuple(served_names(served_model_name, folder)),
        drain_timeout_s=drain_timeout,
        event_log=event_log,
        planner=PlannerOptions(
            planner,
            planner_ttft,
            planner_tpot,
            planner_prefill,
            planner_decode,
            planner_flips_per_hour,
            planner_cooldown,
            planner_window,
            rescue_after,
            planner_workers,
            planner_scale_in_after,
            planner_scales_per_hour,
            ScalerAddress(scaler, scaler_token, scaler_key),
        ).settings(),
        api=ApiSettings(
            api_keys=tuple(api_key or ()),
            request_deadline_s=request_timeout,
            objectives=Objectives(slo_ttft, slo_tpot),
        ),
        flow=FlowLimits(
            max_requests=max_requests,
            max_waiting=max_queue,
            slo_policy=slo_policy,
            queue_timeout_s=queue_timeout,
            rejoin_timeout_s=rejoin_timeout,
            local_prefill_tokens=local_prefill_tokens,
            disaggregation=disaggregation,
            policy=checked_policy(policy),
        ),
    )
    uvloop.run(run_router(config))


app.command(
    "prefill", help="Run one prefill worker: computes prompts, hands their KV blocks to decode workers."
)(worker_command("prefill"))
app.command(
    "decode", help="Run one decode worker: receives KV blocks, generates a token a sequence and step."
)(worker_command("decode"))

app.command()(sim)
app.command()(plan)
app.command()(profile)


@app.command()
def chat(
    url: Annotated[
        str, typer.Option(help="Where a router serves.", envvar="BATON_URL")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model name; default: the one served.")] = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=2.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.", min=1)] = 512,
    api_key: Annotated[str, typer.Option(help="Bearer key.", envvar="BATON_API_KEY")] = "",
) -> None:
    """Chat with a served model in the terminal. /reset starts anew, /quit or Ctrl-D leaves."""
    from baton.cli.chat import ChatSession

    ChatSession(url, model, system, temperature, max_tokens, api_key).run()


@app.command()
def flip(
    worker: Annotated[str, typer.Argument(help="Its id, as /workers tells it.")],
    role: Annotated[opt.RoleName, typer.Argument(help="What it is to be.")],
    url: Annotated[
        str, typer.Option(help="Where a router serves.", envvar="BATON_URL")
    ] = "http://127.0.0.1:8000",
    drain_timeout: opt.DrainTimeout = 30.0,
    api_key: Annotated[str, typer.Option(help="Bearer key.", envvar="BATON_API_KEY")] = "",
) -> None:
    """Make a running worker a prefill or a decode worker. It keeps its weights and its cache, and no request fails.

    Example: baton flip prefill-1 decode
    """
    from baton.cli.flip import flip as ask

    print(ask(url, worker, role.value, drain_timeout, api_key))


@app.command()
def version() -> None:
    """Print the version of Baton and of what it computes with."""
    from importlib.metadata import version as version_of

    names = ("torch", "grpcio", "tokenizers")
    print(f"baton {__version__} ({', '.join(f'{name} {version_of(name)}' for name in names)})")
