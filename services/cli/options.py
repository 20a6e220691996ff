"""The options of the commands, each declared once. Command line over environment (BATON_*) over one TOML file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.router.admission import SloPolicy
from baton.router.elastic import PlannerMode
from baton.router.snapshot import Disaggregation


def _option(*, envvar: str, **settings: Any) -> Any:
    """An option that the environment can give as well. The variable is BATON_ and the option's name, so help
    need not repeat it."""
    return typer.Option(envvar=envvar, show_envvar=False, **settings)


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


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
    _option(help="Hugging Face model folder; the demo model where none is given.", envvar="BATON_MODEL"),
]
ServedModelName = Annotated[
    list[str] | None,
    _option(
        help="Name in the API; repeat for aliases. Default: the folder's.", envvar="BATON_SERVED_MODEL_NAME"
    ),
]
Routers = Annotated[
    int, _option(help="Routers, on consecutive ports from --port on.", envvar="BATON_ROUTERS", min=1)
]
PrefillWorkers = Annotated[int, _option(help="Prefill workers.", envvar="BATON_PREFILL", min=0)]
DecodeWorkers = Annotated[int, _option(help="Decode workers.", envvar="BATON_DECODE", min=1)]
Host = Annotated[str, _option(help="Address to listen on.", envvar="BATON_HOST")]
HttpPort = Annotated[
    int, _option(help="HTTP port; 0 takes a free one.", envvar="BATON_PORT", min=0, max=65535)
]
WorkerPort = Annotated[
    int, _option(help="gRPC port; 0 takes a free one.", envvar="BATON_PORT", min=0, max=65535)
]
KvPort = Annotated[
    int,
    _option(
        help="Port of the KV transport (tcp, gloo, nccl), and 100 below that of ucx; 0 takes free ones.",
        envvar="BATON_KV_PORT",
        min=0,
        max=65535,
    ),
]
KvEvents = Annotated[
    Switch,
    _option(
        help="Publish what each worker's prefix cache gains and loses; off, routers guess from their routing.",
        envvar="BATON_KV_EVENTS",
    ),
]
KvEventsPort = Annotated[
    int,
    _option(
        help="Port where KV events are published, the replay socket has the next; 0 takes free ones.",
        envvar="BATON_KV_EVENTS_PORT",
        min=0,
        max=65534,
    ),
]
RegistryHost = Annotated[
    str,
    _option(
        help="Address of the embedded registry, where it differs from --host.", envvar="BATON_REGISTRY_HOST"
    ),
]
RegistryPort = Annotated[
    int, _option(help="Port of the embedded registry.", envvar="BATON_REGISTRY_PORT", min=1, max=65535)
]
Registry = Annotated[
    str,
    _option(
        help="Where the fleet meets: host:port of a router's embedded registry, or consul://host:port/prefix "
        "(with TLS: consul+https://), the prefix telling this fleet from others on that Consul.",
        envvar="BATON_REGISTRY",
    ),
]
RegistryToken = Annotated[
    str,
    _option(
        help="Consul's ACL token, with service:write for the prefix. Best given as BATON_REGISTRY_TOKEN.",
        envvar="BATON_REGISTRY_TOKEN",
        show_default=False,
    ),
]
RegistryCa = Annotated[
    Path | None,
    _option(
        help="PEM file that a consul+https:// certificate is checked against. Default: the system's.",
        envvar="BATON_REGISTRY_CA",
    ),
]
RegistryCertificate = Annotated[
    Path | None,
    _option(help="PEM file shown to a Consul that asks for one.", envvar="BATON_REGISTRY_CERTIFICATE"),
]
RegistryKey = Annotated[
    Path | None, _option(help="PEM file with its private key.", envvar="BATON_REGISTRY_KEY")
]
Advertise = Annotated[
    str, _option(help="Host that others dial, where it differs from --host.", envvar="BATON_ADVERTISE")
]
WorkerId = Annotated[
    str, _option(help="Name in the fleet. Default: role, host and process id.", envvar="BATON_WORKER_ID")
]
DtypeOption = Annotated[
    Dtype, _option(help="Weights and KV; auto is the folder's own.", envvar="BATON_DTYPE")
]
Device = Annotated[str, _option(help="cpu, cuda or cuda:N.", envvar="BATON_DEVICE")]
Attention = Annotated[
    str, _option(help="Attention backend: auto, cpu, triton or reference.", envvar="BATON_ATTENTION")
]
MaxModelLen = Annotated[
    int | None,
    _option(help="Prompt and output, in tokens. Default: the model's.", envvar="BATON_MAX_MODEL_LEN", min=2),
]
KvBlocks = Annotated[
    int | None,
    _option(help="Blocks of each worker's KV pool. Default: from memory.", envvar="BATON_KV_BLOCKS", min=2),
]
BlockSize = Annotated[int, _option(help="Tokens a block.", envvar="BATON_BLOCK_SIZE", min=1, max=1024)]
Tp = Annotated[
    int,
    _option(help="Processes that share each worker's model (tensor parallelism).", envvar="BATON_TP", min=1),
]
PrefillTp = Annotated[
    int | None,
    _option(help="--tp of prefill workers, where it differs.", envvar="BATON_PREFILL_TP", min=1),
]
DecodeTp = Annotated[
    int | None, _option(help="--tp of decode workers, where it differs.", envvar="BATON_DECODE_TP", min=1)
]
Transport = Annotated[
    str,
    _option(
        help="KV transport: cuda-ipc, shm, nccl, ucx, tcp, gloo, or several with commas, the fastest first; "
        "`auto`: the fastest that a pair has.",
        envvar="BATON_TRANSPORT",
    ),
]
Threads = Annotated[
    int | None, _option(help="Compute threads of each worker.", envvar="BATON_THREADS", min=1)
]
CostPerHour = Annotated[
    float,
    _option(
        help="What a worker costs an hour, in your currency; for reports.",
        envvar="BATON_COST_PER_HOUR",
        min=0,
    ),
]
Cpus = Annotated[
    str | None,
    _option(help="Cores that the worker keeps to, as 0-3,8. Default: any.", envvar="BATON_CPUS"),
]
Pin = Annotated[
    bool,
    _option(help="Give each worker cores of its own, where there are enough.", envvar="BATON_PIN"),
]
ChunkTokens = Annotated[
    int,
    _option(help="Prompt tokens computed a step.", envvar="BATON_CHUNK_TOKENS", min=1, max=1_000_000),
]
ChunkMs = Annotated[
    float | None,
    _option(
        help="Milliseconds that prompts may add to a step, by the worker's own profile; 0: any. Default: four "
        "times what each pass takes.",
        envvar="BATON_CHUNK_MS",
        min=0,
    ),
]
MaxRunning = Annotated[int, _option(help="Sequences in a decode batch.", envvar="BATON_MAX_RUNNING", min=1)]
DrainTimeout = Annotated[
    float,
    _option(help="Seconds that SIGTERM lets requests finish.", envvar="BATON_DRAIN_TIMEOUT", min=0),
]
SpotNotice = Annotated[
    str | None,
    _option(
        help="Where to ask, every 2 s, whether this machine is about to be taken away; the worker then drains as "
        "after SIGTERM. file:PATH (it exists), url:URL (answers 200), cmd:COMMAND (ends with status 0).",
        envvar="BATON_SPOT_NOTICE",
    ),
]
StepTimeout = Annotated[
    float,
    _option(
        help="Seconds that one step of the engine may take. At a quarter of it a worker gets no new requests, at "
        "all of it its process ends.",
        envvar="BATON_STEP_TIMEOUT",
        min=1,
    ),
]
MaxRequests = Annotated[
    int,
    _option(
        help="Requests at the workers at once; more wait in the router.", envvar="BATON_MAX_REQUESTS", min=1
    ),
]
MaxQueue = Annotated[
    int, _option(help="Requests that wait in the router; more get 429.", envvar="BATON_MAX_QUEUE", min=0)
]
SloPolicyOption = Annotated[
    SloPolicy,
    _option(
        help="Requests whose TTFT objective is predicted to be missed: none serves them, refuse answers 429.",
        envvar="BATON_SLO_POLICY",
    ),
]
SloTtft = Annotated[
    float | None,
    _option(
        help="Seconds to the first token, of requests without x-slo-ttft-ms.",
        envvar="BATON_SLO_TTFT",
        min=0.001,
    ),
]
SloTpot = Annotated[
    float | None,
    _option(
        help="Seconds a later token, of requests without x-slo-tpot-ms.", envvar="BATON_SLO_TPOT", min=0.0001
    ),
]
QueueTimeout = Annotated[
    float,
    _option(
        help="Seconds a request may wait for its turn (then 408).", envvar="BATON_QUEUE_TIMEOUT", min=0.001
    ),
]
RejoinTimeout = Annotated[
    float,
    _option(
        help="Seconds a request waits for a decode worker where none is there (then 503).",
        envvar="BATON_REJOIN_TIMEOUT",
        min=0,
    ),
]
RequestTimeout = Annotated[
    float,
    _option(help="Seconds until a request is ended (504).", envvar="BATON_REQUEST_TIMEOUT", min=0.001),
]
LocalPrefillTokens = Annotated[
    int,
    _option(
        help="Uncached tokens that a decode worker which caches the beginning prefills itself.",
        envvar="BATON_LOCAL_PREFILL_TOKENS",
        min=0,
    ),
]
DisaggregationOption = Annotated[
    Disaggregation,
    _option(
        help="Where prompts are computed. auto: on the decode worker itself where that is predicted to be better "
        "and its streams stay within their objectives, else on a prefill worker. always: on prefill workers. "
        "never: on decode workers.",
        envvar="BATON_DISAGGREGATION",
    ),
]
Policy = Annotated[
    str,
    _option(
        help="How a request's workers are chosen. predicted: the least predicted time, from queues, caches and "
        "measured speeds. prefix: where most of the prompt is cached. session: by the session's key. "
        "least_loaded, power_of_two (the better of two drawn), round_robin: as they say.",
        envvar="BATON_POLICY",
    ),
]
ApiKey = Annotated[
    list[str] | None,
    _option(help="Bearer key that clients need; repeat for more. Default: none.", envvar="BATON_API_KEY"),
]
EventLog = Annotated[
    Path | None,
    _option(help="Append every request's transitions as JSON lines.", envvar="BATON_EVENT_LOG"),
]
Planner = Annotated[
    PlannerMode,
    _option(
        help="Whether workers change roles as traffic does: off; advise (decides and tells, changes nothing); on.",
        envvar="BATON_PLANNER",
    ),
]
PlannerTtft = Annotated[
    float,
    _option(
        help="Seconds to the first token that the planner plans for.", envvar="BATON_PLANNER_TTFT", min=0.001
    ),
]
PlannerTpot = Annotated[
    float,
    _option(
        help="Seconds for each later token that the planner plans for.",
        envvar="BATON_PLANNER_TPOT",
        min=0.0001,
    ),
]
PlannerPrefill = Annotated[
    str, _option(help="Fewest and most prefill workers, as 1-4 or 1-.", envvar="BATON_PLANNER_PREFILL")
]
PlannerDecode = Annotated[
    str, _option(help="Fewest and most decode workers, as 1-4 or 1-.", envvar="BATON_PLANNER_DECODE")
]
PlannerFlips = Annotated[
    int, _option(help="Role changes in any hour at most.", envvar="BATON_PLANNER_FLIPS_PER_HOUR", min=0)
]
PlannerCooldown = Annotated[
    float,
    _option(
        help="Seconds after a role change in which none goes the other way.",
        envvar="BATON_PLANNER_COOLDOWN",
        min=1.0,
    ),
]
PlannerWindow = Annotated[
    list[str] | None,
    _option(
        help="Other bounds at a time of day (UTC), as '22:00-06:00 prefill=1-2 decode=4- workers=5-8'; repeat "
        "for more.",
        envvar="BATON_PLANNER_WINDOW",
    ),
]
PlannerWorkers = Annotated[
    str | None,
    _option(
        help="Fewest and most workers in both pools together, as 2-8; where the planner starts and stops them.",
        envvar="BATON_PLANNER_WORKERS",
    ),
]
PlannerScaleIn = Annotated[
    float,
    _option(
        help="Seconds for which fewer workers would have done before one is stopped.",
        envvar="BATON_PLANNER_SCALE_IN_AFTER",
        min=1.0,
    ),
]
PlannerScales = Annotated[
    int,
    _option(
        help="Orders to start or stop workers in any hour at most.",
        envvar="BATON_PLANNER_SCALES_PER_HOUR",
        min=0,
    ),
]
ScalerOption = Annotated[
    str,
    _option(
        help="Who starts and stops workers at the planner's word: none, local (baton up itself), or the URL that "
        "orders are posted to.",
        envvar="BATON_SCALER",
    ),
]
ScalerToken = Annotated[
    str,
    _option(
        help="Bearer token for the scaler's URL. Best given as BATON_SCALER_TOKEN.",
        envvar="BATON_SCALER_TOKEN",
        show_default=False,
    ),
]
ScalerKey = Annotated[
    str,
    _option(
        help="Key that orders are signed with for the scaler's URL. Best given as BATON_SCALER_KEY.",
        envvar="BATON_SCALER_KEY",
        show_default=False,
    ),
]
RescueAfter = Annotated[
    float,
    _option(
        help="Seconds without any decode worker after which a prefill worker takes their place, planner or not.",
        envvar="BATON_RESCUE_AFTER",
        min=0,
    ),
]
MaxRestarts = Annotated[
    int,
    _option(
        help="How often a process that dies is started again within --restart-window; 0: never.",
        envvar="BATON_MAX_RESTARTS",
        min=0,
    ),
]
RestartWindow = Annotated[
    float,
    _option(
        help="Seconds after which an end of a process no longer counts.",
        envvar="BATON_RESTART_WINDOW",
        min=0.001,
    ),
]
Secret = Annotated[
    str,
    _option(
        help="Shared by the whole fleet: signs tickets, opens ports. Best given as BATON_SECRET.",
        envvar="BATON_SECRET",
        show_default=False,
    ),
]
LogLevelOption = Annotated[LogLevel, _option(help="What goes to stderr.", envvar="BATON_LOG_LEVEL")]
