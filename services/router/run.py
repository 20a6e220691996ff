"""One request under way: its clock, its parts, its state, its tokens as the HTTP face takes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from baton.errors import BatonError, DeadlineExceeded, HandoffFailed, QueueTimeout
from baton.events import Attributes, EventStream, Lifecycle
from baton.lifecycle import Transition
from baton.request import GenerationRequest, Route, TokenOutput
from baton.router.decode_peer import DecodeLeg
from baton.router.part import Part
from baton.router.placement import Placement
from baton.router.prediction import Prediction
from baton.router.prompt_hashes import PromptHashes
from baton.router.slo_metrics import slo_attributes
from baton.rpc import STREAM_SILENCE_S


class Run:
    """Implements `baton.router.api.backend.Generation`. `whole` has all choices, until they go separate ways."""

    def __init__(self, request: GenerationRequest, hashes: PromptHashes, events: EventStream) -> None:
        self.request = request
        self.hashes = hashes
        self.life = Lifecycle(request.request_id, events, slo_attributes(request.objectives))
        self.route = Route()
        self.whole = Part(request, {choice: [] for choice in range(request.n)})
        self._parts = dict.fromkeys(range(request.n), self.whole)
        self._attempts = 0
        self._tokens: AsyncGenerator[TokenOutput, None] | None = None
        self._arrived_at_s = time.monotonic()
        self._first_output_at_s = 0.0
        self._output_tokens = 0
        self._prediction: Prediction | None = None
        self._placed_at_s = 0.0
        self._first_placed_at_s = 0.0

    def placed(
        self, part: Part, request: GenerationRequest, placement: Placement, failure: BatonError | None
    ) -> None:
        """Notes where the next attempt runs and, of the first, what is predicted, to be held against what comes.

        failure: what ended the attempt before.
        """
        where = _where(placement)
        self._first_placed_at_s = self._first_placed_at_s or time.monotonic()
        if part.has_begun:
            assert failure is not None, "who goes on has been interrupted"
            self.route.decode_worker = placement.decode
            told = where | {"code": failure.code, "reason": failure.message}
            self.life.move(Transition.RESUME, **told, generated_tokens=request.generated_tokens)
            return
        self._follow(placement)
        prediction = placement.prediction
        terms = {"ttft_s": prediction.ttft_s, "tpot_s": prediction.tpot_s, **asdict(prediction)}
        told = where | {f"predicted_{name}": value for name, value in terms.items()}
        self.life.move(
            Transition.PLACE, **told, site=placement.site.value, prompt_tokens=len(request.token_ids)
        )

    def progress(
        self, request: GenerationRequest, transition: Transition, **attributes: str | int | float
    ) -> None:
        """The way to the first token is told once; who goes on elsewhere takes it again, and nobody counts it."""
        if not request.generated_tokens:
            self.life.move(transition, **attributes)
            self.route.cached_tokens = int(attributes.get("cached_tokens", self.route.cached_tokens))

    def hedged(self, placement: Placement) -> None:
        """A second attempt at the first token has begun."""
        self.life.move(Transition.HEDGE, **_where(placement))

    def fell_out(self, placement: Placement, error: BatonError) -> None:
        """One of two attempts at the first token has failed; the other goes on."""
        self.life.move(Transition.FALL_OUT, **_where(placement), code=error.code, reason=error.message)

    def taken_over(self, placement: Placement) -> None:
        """The second attempt has answered before the first. What was predicted of either says nothing of both."""
        self._follow(placement)
        self._prediction = None
        self.life.move(Transition.TAKE_OVER, **_where(placement))

    def moved(self, source: str, target: str, generated_tokens: int) -> None:
        """A sequence has changed its decode worker, and took its KV along."""
        self.route.decode_worker = target
        self.life.move(Transition.MIGRATE, source=source, decode=target, generated_tokens=generated_tokens)

    async def pause(self, seconds: float) -> None:
        if seconds:
            async with self.deadline():
                await asyncio.sleep(seconds)

    @asynccontextmanager
    async def over(self, tokens: AsyncGenerator[TokenOutput, None]) -> AsyncIterator[None]:
        """Gives the run its source of tokens; on leaving, closes it and settles the state: whoever leaves in
        peace has all the tokens it wanted, whoever leaves by an exception has cancelled."""
        self._tokens = tokens
        ending = Transition.CANCEL
        try:
            yield
            ending = Transition.FINISH if self._output_tokens else Transition.CANCEL
        finally:
            await tokens.aclose()
            if not self.life.state.is_terminal:
                self.life.move(ending, **self._figures())

    async def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        assert self._tokens is not None, "outputs are taken inside the context of RequestFlow.start"
        try:
            async for output in self._tokens:
                self._note(output)
                yield output
        except BatonError as error:
            if not self.life.state.is_terminal:
                self.life.move(Transition.FAIL, code=error.code, reason=error.message, **self._figures())
            raise

    def end_choice(self, choice: int) -> None:
        """Stops one choice early, for a stop string was found in its text."""
        self._parts[choice].end_choice(choice)

    def attempt(self, part: Part, tokens: int | None = None) -> GenerationRequest:
        """What the next workers of `part` are asked for; what is left of attempts before cannot be taken for it."""
        self._attempts += 1
        return part.attempt(f"{self.request.request_id}.{self._attempts}", tokens)

    def split(self, part: Part) -> list[Part]:
        parts = part.split()
        self._parts |= {choice: each for each in parts for choice in each.open_choices}
        return parts

    @property
    def age_s(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self._arrived_at_s

    @property
    def waited_s(self) -> float:
        """Seconds since workers first had the request."""
        return time.monotonic() - self._first_placed_at_s

    def remaining_s(self) -> float:
        """Seconds until the request's deadline; raises DeadlineExceeded where none are left."""
        remaining_s = self._arrived_at_s + self.request.deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise self._late()
        return remaining_s

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Bounds what is awaited inside by the request's deadline."""
        limit = asyncio.timeout(self.remaining_s())
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._late() from None

    @asynccontextmanager
    async def turn(self, part: Part, queue_timeout_s: float) -> AsyncIterator[None]:
        """Bounds what is awaited inside by the queue's deadline, and by the request's where that is sooner. Who has
        begun has had its turn."""
        limit = asyncio.timeout(None if part.has_begun else queue_timeout_s)
        try:
            async with self.deadline(), limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise QueueTimeout(
                f"no worker took the request within {queue_timeout_s:g} s, the limit"
            ) from None

    async def next_outputs(self, part: Part, leg: DecodeLeg) -> list[TokenOutput]:
        async with self.deadline():
            outputs = await leg.outputs()
        if outputs and part.ends_with(outputs):
            leg.is_on_worker = False
        return outputs

    async def first_outputs_unreported(self, part: Part, leg: DecodeLeg) -> list[TokenOutput]:
        """The decode worker's word that all blocks have arrived, where the prefill worker has not said so. Raises
        HandoffFailed where it does not come: they may never."""
        limit = asyncio.timeout(STREAM_SILENCE_S)
        try:
            async with limit:
                return await self.next_outputs(part, leg)
        except TimeoutError:
            if not limit.expired():
                raise
            raise HandoffFailed(
                f"no word of a hand-off within {STREAM_SILENCE_S:g} s, from neither side"
            ) from None

    def _follow(self, placement: Placement) -> None:
        self.route.prefill_worker = placement.prefill or "local"
        self.route.decode_worker = placement.decode
        self.route.reasons = list(placement.reasons)
        self._prediction = placement.prediction
        self._placed_at_s = time.monotonic()

    def _note(self, output: TokenOutput) -> None:
        self._output_tokens += 1
        if not self._first_output_at_s:
            self._first_output_at_s = time.monotonic()

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"not done after {self.request.deadline_s:g} s, the request's deadline")

    def _figures(self) -> dict[str, float]:
        now_s = time.monotonic()
        figures = {"output_tokens": float(self._output_tokens), "e2e_s": now_s - self._arrived_at_s}
        if self._first_output_at_s:
            figures["ttft_s"] = self._first_output_at_s - self._arrived_at_s
            per_choice = self._output_tokens / self.request.n
            if per_choice > 1:
                figures["tpot_s"] = (now_s - self._first_output_at_s) / (per_choice - 1)
            figures |= self._prediction_errors(figures)
        return figures

    def _prediction_errors(self, figures: dict[str, float]) -> dict[str, float]:
        """Realised less predicted, of the placement that served; its clock starts when it was made."""
        if self._prediction is None:
            return {}
        realised_ttft_s = self._first_output_at_s - self._placed_at_s
        errors = {"ttft_error_s": realised_ttft_s - self._prediction.ttft_s}
        if "tpot_s" in figures:
            errors["tpot_error_s"] = figures["tpot_s"] - self._prediction.tpot_s
        return errors


def _where(placement: Placement) -> Attributes:
    return {"prefill": placement.prefill or "local", "decode": placement.decode}
