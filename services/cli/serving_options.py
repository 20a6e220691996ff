"""How a router serves: what it takes at once, objectives, placement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from baton.cli.option_groups import OptionGroup
from baton.cli.options import Policy, option
from baton.cli.process_setup import checked_policy
from baton.errors import ConfigError
from baton.router.admission import SloPolicy
from baton.router.policies import DEFAULT_POLICY
from baton.router.snapshot import Disaggregation

if TYPE_CHECKING:
    from baton.router.api.settings import ApiSettings
    from baton.router.request_flow import FlowLimits


@dataclass(frozen=True, slots=True)
class ServingOptions(OptionGroup):
    SECRETS = ("api_key",)

    max_requests: Annotated[
        int,
        option(
            help="Requests at the workers at once; more wait in the router.",
            envvar="BATON_MAX_REQUESTS",
            min=1,
        ),
    ] = 1024
    max_queue: Annotated[
        int, option(help="Requests that wait in the router; more get 429.", envvar="BATON_MAX_QUEUE", min=0)
    ] = 512
    queue_timeout: Annotated[
        float,
        option(
            help="Seconds a request may wait for its turn (then 408).",
            envvar="BATON_QUEUE_TIMEOUT",
            min=0.001,
        ),
    ] = 60.0
    request_timeout: Annotated[
        float,
        option(help="Seconds until a request is ended (504).", envvar="BATON_REQUEST_TIMEOUT", min=0.001),
    ] = 600.0
    slo_policy: Annotated[
        SloPolicy,
        option(
            help="Requests whose TTFT objective is predicted to be missed: none serves them, refuse answers 429.",
            envvar="BATON_SLO_POLICY",
        ),
    ] = SloPolicy.NONE
    slo_ttft: Annotated[
        float | None,
        option(
            help="Seconds to the first token, of requests without x-slo-ttft-ms.",
            envvar="BATON_SLO_TTFT",
            min=0.001,
        ),
    ] = None
    slo_tpot: Annotated[
        float | None,
        option(
            help="Seconds a later token, of requests without x-slo-tpot-ms.",
            envvar="BATON_SLO_TPOT",
            min=0.0001,
        ),
    ] = None
    rejoin_timeout: Annotated[
        float,
        option(
            help="Seconds a request waits for a decode worker where none is there (then 503).",
            envvar="BATON_REJOIN_TIMEOUT",
            min=0,
        ),
    ] = 30.0
    hedge_after: Annotated[
        float | None,
        option(
            help="Seconds without a first token, after which a request is tried on a second pair of workers, too; "
            "the first to answer serves it. One request in twenty on average. Default: never.",
            envvar="BATON_HEDGE_AFTER",
            min=0.001,
        ),
    ] = None
    local_prefill_tokens: Annotated[
        int,
        option(
            help="Uncached tokens that a decode worker which caches the beginning prefills itself.",
            envvar="BATON_LOCAL_PREFILL_TOKENS",
            min=0,
        ),
    ] = 64
    disaggregation: Annotated[
        Disaggregation,
        option(
            help="Where prompts are computed. auto: on the decode worker itself where that is predicted to be "
            "better and its streams stay within their objectives, else on a prefill worker. always: on prefill "
            "workers. never: on decode workers.",
            envvar="BATON_DISAGGREGATION",
        ),
    ] = Disaggregation.AUTO
    policy: Policy = DEFAULT_POLICY
    api_key: Annotated[
        list[str] | None,
        option(help="Bearer key that clients need; repeat for more. Default: none.", envvar="BATON_API_KEY"),
    ] = None
    event_log: Annotated[
        Path | None,
        option(help="Append every request's transitions as JSON lines.", envvar="BATON_EVENT_LOG"),
    ] = None

    def arguments(self) -> dict[str, object]:
        checked_policy(self.policy)
        if any(key.split() != [key] for key in self.api_key or []):  # the environment cannot carry it
            raise ConfigError("an API key is empty or has blanks in it", field="api_key")
        return OptionGroup.arguments(self)

    def api(self) -> ApiSettings:
        from baton.request import Objectives
        from baton.router.api.settings import ApiSettings

        return ApiSettings(
            api_keys=tuple(self.api_key or ()),
            request_deadline_s=self.request_timeout,
            objectives=Objectives(self.slo_ttft, self.slo_tpot),
        )

    def flow(self) -> FlowLimits:
        """Raises ConfigError listing the choices where there is no such policy."""
        from baton.router.request_flow import FlowLimits

        return FlowLimits(
            max_requests=self.max_requests,
            max_waiting=self.max_queue,
            slo_policy=self.slo_policy,
            queue_timeout_s=self.queue_timeout,
            rejoin_timeout_s=self.rejoin_timeout,
            hedge_after_s=self.hedge_after,
            local_prefill_tokens=self.local_prefill_tokens,
            disaggregation=self.disaggregation,
            policy=checked_policy(self.policy),
        )
