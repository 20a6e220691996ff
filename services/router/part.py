"""Choices of one request that run together: on the same workers, with one prompt.

A request begins as one part. Once its choices have tokens each has a history of its own; so where the workers of
several are lost, each of them goes on as a part by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from baton.errors import WorkerFailed
from baton.request import GenerationRequest, Token, TokenOutput
from baton.router.decode_peer import DecodeLeg


class Part:
    """To a worker the choices of a part are 0, 1, …, whatever they are to the client. `leg` is where they decode
    now, once there is one."""

    def __init__(self, request: GenerationRequest, generated: Mapping[int, Sequence[int]]) -> None:
        """request: the client's. generated: the output so far of each choice."""
        self.leg: DecodeLeg | None = None
        self._request = request
        self._generated = {choice: list(token_ids) for choice, token_ids in generated.items()}
        self._choices = tuple(self._generated)
        self._open = set(self._choices)

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    @property
    def open_choices(self) -> frozenset[int]:
        return frozenset(self._open)

    @property
    def output_tokens(self) -> int:
        return sum(len(token_ids) for token_ids in self._generated.values())

    @property
    def has_begun(self) -> bool:
        return self.output_tokens > 0

    @property
    def is_single(self) -> bool:
        return len(self._choices) == 1

    def attempt(self, attempt_id: str, tokens: int | None = None) -> GenerationRequest:
        """What the next workers are asked for: all of it, or to go on after the tokens that are here, or after the
        first `tokens` of prompt and output."""
        if not self.has_begun:
            return replace(self._request, request_id=attempt_id)
        assert self.is_single, "choices that have begun go on one by one"
        [(choice, generated)] = self._generated.items()
        if tokens is not None:
            generated = generated[: tokens - len(self._request.token_ids)]
        sampling = self._request.sampling
        return replace(
            self._request,
            request_id=attempt_id,
            token_ids=(*self._request.token_ids, *generated),
            generated_tokens=len(generated),
            n=1,
            sampling=replace(sampling, seed=sampling.seed_of(choice)),
        )

    def tokens_from(self, index: int) -> list[TokenOutput]:
        """What the only choice has generated from `index` on, as a worker numbers it."""
        [generated] = self._generated.values()
        return [TokenOutput(0, Token(index + i, token_id)) for i, token_id in enumerate(generated[index:])]

    def movable_tokens(self, multiple: int) -> int:
        """Leading tokens of the only choice that are worth moving: a multiple of `multiple`, all with their KV, and
        beyond the prompt; 0 where it is too early."""
        [generated] = self._generated.values()
        prompt_tokens = len(self._request.token_ids)
        tokens = (prompt_tokens + len(generated) - 1) // multiple * multiple
        return tokens if tokens > prompt_tokens else 0

    def split(self) -> list[Part]:
        """Each open choice by itself."""
        return [Part(self._request, {choice: self._generated[choice]}) for choice in sorted(self._open)]

    def take(self, output: TokenOutput) -> TokenOutput:
        """`output` as the client's; noted. Raises WorkerFailed for anything but the choice's next token."""
        if output.choice >= len(self._choices):
            raise WorkerFailed(f"a worker sent a token of choice {output.choice} of {len(self._choices)}")
        choice = self._choices[output.choice]
        generated = self._generated[choice]
        if output.token.index != len(generated):
            raise WorkerFailed(
                f"a worker sent token {output.token.index} of choice {choice} where {len(generated)} is due"
            )
        generated.append(output.token.token_id)
        if output.finish_reason is not None:
            self._open.discard(choice)
        return replace(output, choice=choice)

    def goes_on(self, output: TokenOutput) -> bool:
        """Whether more is wanted after this `output` of a worker."""
        return self._choices[output.choice] in self._open

    def end_choice(self, choice: int) -> None:
        """Stops one choice early, for a stop string was found in its text."""
        if choice in self._open:
            self._open.discard(choice)
            if self.leg is not None:
                self.leg.end_choice(self._choices.index(choice))

    def ends_with(self, outputs: Sequence[TokenOutput]) -> bool:
        """Whether `outputs` of a worker are the last of every choice that is open."""
        finished = {self._choices[o.choice] for o in outputs if o.finish_reason is not None}
        return self._open <= finished
