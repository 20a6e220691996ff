"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from baton.router.api.answers import Completion, CompletionChoice, OptionalUsage, Usage
from baton.router.api.context import ApiContext, Context
from baton.router.api.errors import invalid
from baton.router.api.examples import COMPLETION_RESPONSES
from baton.router.api.generation_response import GenerationResponse
from baton.router.api.job import GenerationJob, Prompt, UsageReports, prompt_runs
from baton.router.api.json_body import JsonRoute
from baton.router.api.limits import OutputLength
from baton.router.api.logprobs import CompletionLogprobs, TokenNames, completion_logprobs
from baton.router.api.prompt_run import ChoiceDelta
from baton.router.api.schema import CompletionRequest

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/completions", summary="Continue a text", responses=COMPLETION_RESPONSES)
async def completions(body: CompletionRequest, request: Request, context: Context) -> Response:
    """OpenAI's completions, with vLLM's sampling fields. `prompt` is a text, token ids, or a list of either;
    choice c of prompt p has index p * n + c."""
    limits = context.limits
    model = limits.check_model(body.model)
    given = _listed(body)
    limits.check_sequences(len(given), body.n)
    _check_combinations(body)
    reports = UsageReports.of(body)
    logprobs = None if body.logprobs is None else limits.logprobs(body.logprobs, "logprobs")
    answer_id = f"cmpl-{secrets.token_hex(16)}"
    prompts = [await _encoded(field, prompt, body, context) for field, prompt in given.items()]
    length = OutputLength("max_tokens", body.max_tokens, context.settings.default_completion_tokens)
    runs = prompt_runs(context, body, request.headers, answer_id, prompts, length, logprobs)
    echoed = [_echoed(prompt, body, context) for prompt in given.values()] if body.echo else [""] * len(given)
    token_ids = [prompt.token_ids for prompt in prompts]
    answer = CompletionFormat(answer_id, model, body, token_ids, echoed, TokenNames.of(context.text, body))
    job = GenerationJob(request.state.request_id, context.backend, runs, answer, body.stream, reports)
    return GenerationResponse(job)


def _listed(body: CompletionRequest) -> dict[str, str | list[int]]:
    """Each prompt under the name of its field."""
    prompt = body.prompt
    if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int)):
        return {
            f"prompt.{position}": one for position, one in enumerate(prompt) if isinstance(one, str | list)
        }
    return {"prompt": prompt}


def _check_combinations(body: CompletionRequest) -> None:
    if body.best_of not in (None, body.n):
        raise invalid("best_of", f"only the value of n ({body.n}) is supported, not {body.best_of}")
    if body.echo and body.logprobs is not None:
        raise invalid("echo", "logprobs of the prompt are not supported; leave out echo or logprobs")


async def _encoded(
    field: str, prompt: str | list[int], body: CompletionRequest, context: ApiContext
) -> Prompt:
    if isinstance(prompt, list):
        return Prompt(field, prompt)
    context.limits.check_text(prompt, context.text, field)
    return Prompt(field, await context.text.encode(prompt, add_special_tokens=body.add_special_tokens))


def _echoed(prompt: str | list[int], body: CompletionRequest, context: ApiContext) -> str:
    if isinstance(prompt, str):
        return prompt
    return context.text.decode(prompt, skip_special_tokens=body.skip_special_tokens)


class CompletionFormat:
    """Writes completions; an `AnswerFormat`. `prompts` and `echoed` have an entry for each prompt."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        body: CompletionRequest,
        prompts: Sequence[list[int]],
        echoed: Sequence[str],
        names: TokenNames,
    ) -> None:
        self._id = answer_id
        self._model = model
        self._body = body
        self._prompts = prompts
        self._echoed = echoed
        self._names = names
        self._created = int(time.time())
        self._wants_every_token = body.logprobs is not None or body.return_token_ids

    def opening(self, usage: OptionalUsage) -> Iterator[Completion]:
        """What stands before the first token: the echo of a prompt, and its token ids."""
        if not (self._body.echo or self._body.return_token_ids):
            return
        for index in range(len(self._prompts) * self._body.n):
            choice = CompletionChoice(index, self._echoed[index // self._body.n])
            if self._body.return_token_ids:
                choice.prompt_token_ids = self._prompts[index // self._body.n]
                choice.token_ids = []
            yield self._completion([choice], usage)

    def chunk(self, delta: ChoiceDelta, usage: OptionalUsage) -> Completion | None:
        finish_reason = delta.finish_reason
        if not (delta.text or finish_reason or self._wants_every_token):
            return None
        choice = CompletionChoice(
            index=delta.index,
            text=delta.text,
            logprobs=self._logprobs([delta]),
            finish_reason=None if finish_reason is None else finish_reason.value,
            stop_reason=UNSET if finish_reason is None else delta.stop_reason,
            token_ids=[delta.token.token_id] if self._body.return_token_ids else UNSET,
        )
        return self._completion([choice], usage)

    def usage_chunk(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def whole(self, choices: Sequence[list[ChoiceDelta]], usage: Usage) -> Completion:
        return self._completion([self._choice(deltas) for deltas in choices], usage)

    def _choice(self, deltas: list[ChoiceDelta]) -> CompletionChoice:
        last = deltas[-1]
        assert last.finish_reason is not None, "a run ends when every choice has an ending"
        position = last.index // self._body.n
        wants_ids = self._body.return_token_ids
        return CompletionChoice(
            index=last.index,
            text=self._echoed[position] + "".join(delta.text for delta in deltas),
            logprobs=self._logprobs(deltas),
            finish_reason=last.finish_reason.value,
            stop_reason=last.stop_reason,
            token_ids=[delta.token.token_id for delta in deltas] if wants_ids else UNSET,
            prompt_token_ids=self._prompts[position] if wants_ids else UNSET,
        )

    def _logprobs(self, deltas: Sequence[ChoiceDelta]) -> CompletionLogprobs | None:
        return None if self._body.logprobs is None else completion_logprobs(deltas, self._names)

    def _completion(self, choices: list[CompletionChoice], usage: OptionalUsage) -> Completion:
        return Completion(self._id, self._created, self._model, choices, usage=usage)
