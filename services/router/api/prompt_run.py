"""One prompt of a request while it runs: token outputs in, changes to its choices out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from baton.errors import WorkerFailed
from baton.request import FinishReason, GenerationRequest, Route, Token, TokenOutput
from baton.router.api.backend import Backend, Generation
from baton.router.detokenizer import TextStream
from baton.router.merging import merged


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one token changed in one choice.

    index: of the choice among those of all prompts. text: that became certain with the token. text_offset: of
    the token's first character in the choice's text. stop_reason: the stop string or the id of
    `stop_token_ids` that ended it.
    """

    index: int
    token: Token
    text: str
    text_offset: int
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class PromptRun:
    """A generation request and the text of each of its choices.

    Args:
        streams: one for each choice. first_index: index of choice 0 in the answer.
        include_stop: keep the text of a stop token.
    """

    def __init__(
        self,
        request: GenerationRequest,
        streams: Sequence[TextStream],
        *,
        first_index: int = 0,
        include_stop: bool = False,
    ) -> None:
        self.request = request
        self.first_index = first_index
        self.route = Route()
        self.completion_tokens = 0
        self._streams = streams
        self._include_stop = include_stop
        self._open = set(range(request.n))

    async def deltas(self, backend: Backend) -> AsyncGenerator[ChoiceDelta, None]:
        """Runs the request until every choice has ended. Closing the iterator cancels what still runs.

        Raises:
            BatonError: from the backend; WorkerFailed where it stopped before every choice had an ending.
        """
        async with backend.start(self.request) as generation, aclosing(generation.outputs()) as outputs:
            self.route = generation.route
            async for output in outputs:
                if output.choice in self._open:  # otherwise on its way when a stop string ended the choice
                    yield self._push(output, generation)
                if not self._open:
                    return
        raise WorkerFailed("the generation stopped before it had an ending")

    def _push(self, output: TokenOutput, generation: Generation) -> ChoiceDelta:
        self.completion_tokens += 1
        stop_token_id = output.stop_token_id
        stream = self._streams[output.choice]
        text_offset = stream.decoded_chars
        text = stream.push(
            output.token.token_id,
            is_last=output.finish_reason is not None,
            is_hidden=stop_token_id is not None and not self._include_stop,
        )
        finish_reason = output.finish_reason if text.stop_string is None else FinishReason.STOP
        if finish_reason is not None:
            self._open.remove(output.choice)
            if output.finish_reason is None and self._open:
                generation.end_choice(output.choice)
        is_asked_stop = stop_token_id in self.request.sampling.stop_token_ids
        return ChoiceDelta(
            index=self.first_index + output.choice,
            token=output.token,
            text=text.text,
            text_offset=text_offset,
            finish_reason=finish_reason,
            stop_reason=text.stop_string or (stop_token_id if is_asked_stop else None),
        )


async def deltas_of(runs: Sequence[PromptRun], backend: Backend) -> AsyncGenerator[ChoiceDelta, None]:
    """The changes of all prompts of a request as they come; the first failure of one ends all."""
    async with aclosing(merged([run.deltas(backend) for run in runs])) as deltas:  # bounded by max_tokens
        async for delta in deltas:
            yield delta
