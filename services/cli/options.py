"""Single options of the commands, each declared once; those that come in groups are beside (`option_groups.py`).

Command line over environment (BATON_*) over one TOML file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


def option(*, envvar: str, **settings: Any) -> Any:
    """An option that the environment can give as well. The variable is BATON_ and the option's name, so help
    need not repeat it."""
    return typer.Option(envvar=envvar, show_envvar=False, **settings)


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Attention(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    TRITON = "triton"
    REFERENCE = "reference"
    FLASHINFER = "flashinfer"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


class RoleName(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


Model = Annotated[
    Path | None,
    option(help="Hugging Face model folder; the demo model where none is given.", envvar="BATON_MODEL"),
]
ServedModelName = Annotated[
    list[str] | None,
    option(
        help="Name in the API; repeat for aliases. Default: the folder's.", envvar="BATON_SERVED_MODEL_NAME"
    ),
]
Routers = Annotated[
    int, option(help="Routers, on consecutive ports from --port on.", envvar="BATON_ROUTERS", min=1)
]
PrefillWorkers = Annotated[int, option(help="Prefill workers.", envvar="BATON_PREFILL", min=0)]
DecodeWorkers = Annotated[int, option(help="Decode workers.", envvar="BATON_DECODE", min=1)]
Host = Annotated[str, option(help="Address to listen on.", envvar="BATON_HOST")]
HttpPort = Annotated[
    int, option(help="HTTP port; 0 takes a free one.", envvar="BATON_PORT", min=0, max=65535)
]
WorkerPort = Annotated[
    int, option(help="gRPC port; 0 takes a free one.", envvar="BATON_PORT", min=0, max=65535)
]
KvPort = Annotated[
    int,
    option(
        help="Port of the KV transport (tcp, gloo, nccl), and 100 below that of ucx; 0 takes free ones.",
        envvar="BATON_KV_PORT",
        min=0,
        max=65535,
    ),
]
KvEventsPort = Annotated[
    int,
    option(
        help="Port where KV events are published, the replay socket has the next; 0 takes free ones.",
        envvar="BATON_KV_EVENTS_PORT",
        min=0,
        max=65534,
    ),
]
RegistryHost = Annotated[
    str,
    option(
        help="Address of the embedded registry, where it differs from --host.", envvar="BATON_REGISTRY_HOST"
    ),
]
RegistryPort = Annotated[
    int, option(help="Port of the embedded registry.", envvar="BATON_REGISTRY_PORT", min=1, max=65535)
]
Registry = Annotated[
    str,
    option(
        help="Where the fleet meets: host:port of a router's embedded registry, or consul://host:port/prefix "
        "(with TLS: consul+https://), the prefix telling this fleet from others on that Consul.",
        envvar="BATON_REGISTRY",
    ),
]
Advertise = Annotated[
    str, option(help="Host that others dial, where it differs from --host.", envvar="BATON_ADVERTISE")
]
WorkerId = Annotated[
    str, option(help="Name in the fleet. Default: role, host and process id.", envvar="BATON_WORKER_ID")
]
Tp = Annotated[
    int,
    option(help="Processes that share each worker's model (tensor parallelism).", envvar="BATON_TP", min=1),
]
PrefillTp = Annotated[
    int | None,
    option(help="--tp of prefill workers, where it differs.", envvar="BATON_PREFILL_TP", min=1),
]
DecodeTp = Annotated[
    int | None, option(help="--tp of decode workers, where it differs.", envvar="BATON_DECODE_TP", min=1)
]
Threads = Annotated[int | None, option(help="Compute threads of each worker.", envvar="BATON_THREADS", min=1)]
CostPerHour = Annotated[
    float,
    option(
        help="What a worker costs an hour, in your currency; for reports.",
        envvar="BATON_COST_PER_HOUR",
        min=0,
    ),
]
Cpus = Annotated[
    str | None,
    option(help="Cores that the worker keeps to, as 0-3,8. Default: any.", envvar="BATON_CPUS"),
]
Pin = Annotated[
    bool,
    option(help="Give each worker cores of its own, where there are enough.", envvar="BATON_PIN"),
]
DrainTimeout = Annotated[
    float,
    option(help="Seconds that SIGTERM lets requests finish.", envvar="BATON_DRAIN_TIMEOUT", min=0),
]
Policy = Annotated[
    str,
    option(
        help="How a request's workers are chosen. predicted: the least predicted time, from queues, caches and "
        "measured speeds. prefix: where most of the prompt is cached. session: by the session's key. "
        "least_loaded, power_of_two (the better of two drawn), round_robin: as they say.",
        envvar="BATON_POLICY",
    ),
]
MaxRestarts = Annotated[
    int,
    option(
        help="How often a process that dies is started again within --restart-window; 0: never.",
        envvar="BATON_MAX_RESTARTS",
        min=0,
    ),
]
RestartWindow = Annotated[
    float,
    option(
        help="Seconds after which an end of a process no longer counts.",
        envvar="BATON_RESTART_WINDOW",
        min=0.001,
    ),
]
Secret = Annotated[
    str,
    option(
        help="Shared by the whole fleet: signs tickets, opens ports. Best given as BATON_SECRET.",
        envvar="BATON_SECRET",
        show_default=False,
    ),
]
LogLevelOption = Annotated[LogLevel, option(help="What goes to stderr.", envvar="BATON_LOG_LEVEL")]
