"""A checked request, ready to run: its prompts, its format, and what it reports of token counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import UNSET
from starlette.datastructures import Headers

from baton.request import GenerationRequest, session_key
from baton.router.api.answers import OptionalUsage, PromptTokensDetails, Usage
from baton.router.api.backend import Backend
from baton.router.api.context import ApiContext
from baton.router.api.errors import invalid
from baton.router.api.headers import objectives_of, session_of, tenant_of
from baton.router.api.limits import OutputLength
from baton.router.api.prompt_run import ChoiceDelta, PromptRun
from baton.router.api.schema import GenerationBody
from baton.router.detokenizer import StopStrings


class AnswerFormat(Protocol):
    """One endpoint's way to write an answer."""

    def opening(self, usage: OptionalUsage) -> Iterator[msgspec.Struct]:
        """The chunks before the first token."""
        ...

    def chunk(self, delta: ChoiceDelta, usage: OptionalUsage) -> msgspec.Struct | None:
        """The chunk of one delta; None where there is nothing to tell yet."""
        ...

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, without choices."""
        ...

    def whole(self, choices: Sequence[list[ChoiceDelta]], usage: Usage) -> msgspec.Struct:
        """The body of an answer that is not streamed; `choices[i]` are the deltas of choice i."""
        ...


@dataclass(frozen=True, slots=True)
class UsageReports:
    """When a stream tells token counts: at the end, or with every chunk too."""

    at_end: bool
    always: bool

    @classmethod
    def of(cls, body: GenerationBody) -> UsageReports:
        options = body.stream_options
        if options is None:
            return cls(at_end=False, always=False)
        if not body.stream:
            raise invalid("stream_options", "only allowed where stream is true")
        return cls(
            at_end=options.include_usage, always=options.include_usage and options.continuous_usage_stats
        )


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """All that answering one request takes."""

    request_id: str
    backend: Backend
    runs: Sequence[PromptRun]
    format: AnswerFormat
    is_stream: bool
    usage_reports: UsageReports

    def usage(self) -> Usage:
        prompt_tokens = sum(len(run.request.token_ids) for run in self.runs)
        completion_tokens = sum(run.completion_tokens for run in self.runs)
        cached_tokens = sum(run.route.cached_tokens for run in self.runs)
        return Usage(
            prompt_tokens,
            completion_tokens,
            prompt_tokens + completion_tokens,
            PromptTokensDetails(cached_tokens),
        )

    def usage_of_chunk(self) -> OptionalUsage:
        """OpenAI has a null in every chunk but the last, where counts were asked for at all."""
        if self.usage_reports.always:
            return self.usage()
        return None if self.usage_reports.at_end else UNSET


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the name of the field they came from."""

    field: str
    token_ids: list[int]


def prompt_runs(
    context: ApiContext,
    body: GenerationBody,
    headers: Headers,
    answer_id: str,
    prompts: Sequence[Prompt],
    length: OutputLength,
    logprobs: int | None,
) -> list[PromptRun]:
    """Everything about a request that can be refused before a worker sees it is refused here.

    Raises:
        InvalidRequest: naming field, value and limit.
    """
    limits = context.limits
    stops = StopStrings(limits.stop_strings(body.stop))
    session_id = session_of(headers, body)
    objectives = objectives_of(headers, context.settings.objectives)
    tenant = tenant_of(headers, body, context.settings.api_keys)
    runs = []
    for position, prompt in enumerate(prompts):
        limits.check_prompt(prompt.token_ids, prompt.field)
        request = GenerationRequest(
            request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{position}",
            token_ids=tuple(prompt.token_ids),
            sampling=limits.sampling(body, len(prompt.token_ids), length, logprobs),
            n=body.n,
            cache_salt=body.cache_salt or "",
            session_id=session_id,
            session_key=b"" if session_id is None else session_key(tenant, session_id),
            priority=body.priority,
            deadline_s=context.settings.request_deadline_s,
            objectives=objectives,
            tenant=tenant,
        )
        streams = [
            context.text.stream(
                stops,
                skip_special_tokens=body.skip_special_tokens,
                min_tokens=body.min_tokens,
                include_stop=body.include_stop_str_in_output,
            )
            for _ in range(body.n)
        ]
        include_stop = body.include_stop_str_in_output
        runs.append(PromptRun(request, streams, first_index=position * body.n, include_stop=include_stop))
    return runs
