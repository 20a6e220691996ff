"""What the HTTP face needs from whatever generates tokens. The router implements it, and so does
the fake of the tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from baton.fleet import Role
from baton.request import GenerationRequest, Route, TokenOutput


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request that leaves a field out gets; a model's generation_config.json may set its own."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that the fleet serves.

    model_id: the name in answers; aliases: further names that requests may use. created: Unix time in
    seconds. max_model_tokens: prompt and output together. vocab_size: rows of the embedding; token ids are
    below it.
    """

    model_id: str
    created: int
    max_model_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    aliases: tuple[str, ...] = ()
    sampling_defaults: SamplingDefaults = SamplingDefaults()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model_id, *self.aliases)


class Generation(Protocol):
    """One running request: all its choices over one prompt."""

    @property
    def route(self) -> Route:
        """Where the request runs; complete once the first output has arrived."""
        ...

    def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        """The tokens of all choices, interleaved, until each choice has ended; called once.

        Raises:
            BatonError: the request failed; no further output follows.
        """
        ...

    def end_choice(self, choice: int) -> None:
        """Stops one choice early, for a stop string was found in its text. Does not wait; tokens that are
        already on their way may still arrive. Called only while another choice still runs: to end all of
        them, the caller leaves the context."""
        ...


class Backend(Protocol):
    """The fleet as the HTTP face sees it."""

    @property
    def model(self) -> ServedModel: ...

    def start(self, request: GenerationRequest) -> AbstractAsyncContextManager[Generation]:
        """Runs a request while the context is open; leaving it cancels what still runs and releases
        everything on all sides.

        Raises:
            Overloaded, QueueTimeout, Unavailable, ...: on entering, or out of `Generation.outputs`.
        """
        ...

    def fleet(self) -> Sequence[object]:
        """The workers known now, as dataclasses or msgspec structs that encode to JSON."""
        ...

    async def change_role(self, worker_id: str, role: Role, drain_timeout_s: float) -> object:
        """Makes a worker serve in `role`; returns once it does, with what encodes to JSON.

        Raises:
            InvalidRequest: no such worker, or the last that can decode. Unavailable: it cannot now.
        """
        ...

    async def finish_session(self, session_key: bytes) -> object:
        """Tells the workers that a session is over; returns with what encodes to JSON once they have let go of what
        it alone has left there.

        Raises:
            Unavailable: no worker could be told. Overloaded: too many sessions are being finished.
        """
        ...

    def is_ready(self) -> bool:
        """Whether a request that arrives now can be served."""
        ...

    def is_live(self) -> bool:
        """Whether this process is sound; a process that is not should be restarted."""
        ...

    def server_info(self) -> Mapping[str, object]:
        """Configuration and build of this server, fit for the eyes of any key holder."""
        ...
