"""How a worker works, in either role."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from baton.cli.option_groups import OptionGroup
from baton.cli.options import CostPerHour, Switch, option
from baton.errors import ConfigError
from baton.kvtransfer.schemes import BETWEEN_PROCESSES

if TYPE_CHECKING:
    from baton.decode.limits import DecodeLimits
    from baton.prefill.scheduler import PrefillLimits
    from baton.worker.notices import NoticeSource


@dataclass(frozen=True, slots=True)
class WorkerOptions(OptionGroup):
    transport: Annotated[
        str,
        option(
            help="KV transport: cuda-ipc, shm, nccl, ucx, tcp, gloo, or several with commas, the fastest first; "
            "`auto`: the fastest that a pair has.",
            envvar="BATON_TRANSPORT",
        ),
    ] = "auto"
    kv_events: Annotated[
        Switch,
        option(
            help="Publish what each worker's prefix cache gains and loses; off, routers guess from their routing.",
            envvar="BATON_KV_EVENTS",
        ),
    ] = Switch.ON
    chunk_tokens: Annotated[
        int,
        option(help="Prompt tokens computed a step.", envvar="BATON_CHUNK_TOKENS", min=1, max=1_000_000),
    ] = 512
    chunk_ms: Annotated[
        float | None,
        option(
            help="Milliseconds that prompts may add to a step, by the worker's own profile; 0: any. Default: four "
            "times what each pass takes.",
            envvar="BATON_CHUNK_MS",
            min=0,
        ),
    ] = None
    max_running: Annotated[
        int, option(help="Sequences in a decode batch.", envvar="BATON_MAX_RUNNING", min=1)
    ] = 256
    cost_per_hour: CostPerHour = 0.0
    step_timeout: Annotated[
        float,
        option(
            help="Seconds that one step of the engine may take. At a quarter of it a worker gets no new requests, "
            "at all of it its process ends.",
            envvar="BATON_STEP_TIMEOUT",
            min=1,
        ),
    ] = 120.0
    spot_notice: Annotated[
        str | None,
        option(
            help="Where to ask, every 2 s, whether this machine is about to be taken away; the worker then drains "
            "as after SIGTERM. file:PATH (it exists), url:URL (answers 200), cmd:COMMAND (ends with status 0).",
            envvar="BATON_SPOT_NOTICE",
        ),
    ] = None

    def arguments(self) -> dict[str, object]:
        checked_schemes(self.transport)
        checked_notices(self.spot_notice)
        return OptionGroup.arguments(self)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Transports in order of preference; empty: whatever a pair has. Raises ConfigError listing the choices."""
        return checked_schemes(self.transport)

    @property
    def notices(self) -> NoticeSource | None:
        """Raises ConfigError for what is no source of notices."""
        return checked_notices(self.spot_notice)

    def prefill(self) -> PrefillLimits:
        from baton.prefill.scheduler import PrefillLimits

        return PrefillLimits(self.chunk_tokens, chunk_s=self._chunk_s)

    def decode(self) -> DecodeLimits:
        from baton.decode.limits import DecodeLimits

        return DecodeLimits(
            self.max_running, prefill_chunk_tokens=self.chunk_tokens, prefill_chunk_s=self._chunk_s
        )

    @property
    def _chunk_s(self) -> float | None:
        return None if self.chunk_ms is None else self.chunk_ms / 1000 or math.inf


def checked_schemes(transport: str) -> tuple[str, ...]:
    """None for `auto`. Raises ConfigError listing the choices."""
    schemes = () if transport == "auto" else tuple(transport.split(","))
    for scheme in schemes:
        if scheme not in BETWEEN_PROCESSES:
            raise ConfigError(
                f"KV transport {scheme!r} is unknown (choices: auto alone; {', '.join(BETWEEN_PROCESSES)})",
                field="transport",
            )
    return schemes


def checked_notices(source: str | None) -> NoticeSource | None:
    """Raises ConfigError for what is no source of notices."""
    from baton.worker.notices import NoticeSource  # brings in an HTTP client

    return NoticeSource.parse(source) if source else None
