"""A backend without an engine: it says what its script holds, one token a step, with the endings of a real one.

It counts what is open, so that tests can tell whether a request was released, and it can stall or fail at any
token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence as EngineSequence
from baton.errors import InvalidRequest
from baton.fleet import Role
from baton.request import GenerationRequest, Route, Token, TokenOutput
from baton.router.api.backend import ServedModel

EOS_TOKEN_ID = 2
VOCAB_SIZE = 512

MODEL = ServedModel(
    model_id="org/scripted",
    created=1_790_000_000,
    max_model_tokens=256,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=frozenset({EOS_TOKEN_ID}),
    aliases=("scripted",),
)


@dataclass
class Worker:
    id: str
    role: str


@dataclass
class ScriptedBackend:
    """script: what greedy choices say before EOS; sampled ones draw their tokens from their seed.

    stall_at, fail_at: number of outputs after which the generation waits for ever, or raises `error`; at -1 it
    does so before it has started.
    """

    script: Sequence[int] = ()
    model: ServedModel = MODEL
    stall_at: int | None = None
    fail_at: int | None = None
    error: Exception | None = None
    ends_silently_at: int | None = None
    cached_tokens: int = 0
    is_up: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)
    roles: dict[str, Role] = field(default_factory=dict)
    finished_sessions: list[bytes] = field(default_factory=list)
    ended_choices: list[int] = field(default_factory=list)
    outputs_given: int = 0
    open: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_stalled: asyncio.Event = field(default_factory=asyncio.Event)

    async def change_role(self, worker_id: str, role: Role, drain_timeout_s: float) -> object:
        if worker_id not in {"prefill-0", "decode-0"}:
            raise InvalidRequest(f"worker {worker_id!r} is not in the fleet", field="worker_id")
        self.roles[worker_id] = role
        return {"worker_id": worker_id, "role": role.value, "drained_s": drain_timeout_s, "switched_s": 0.0}

    async def finish_session(self, session_key: bytes) -> object:
        self.finished_sessions.append(session_key)
        return {"blocks": 3, "workers": {"decode-0": 3}, "unconfirmed": []}

    def is_ready(self) -> bool:
        return self.is_up

    def is_live(self) -> bool:
        return self.is_up

    def fleet(self) -> Sequence[object]:
        return [Worker("prefill-0", "prefill"), Worker("decode-0", "decode")]

    def server_info(self) -> Mapping[str, object]:
        return {"model": self.model.model_id}

    @asynccontextmanager
    async def start(self, request: GenerationRequest) -> AsyncIterator[ScriptedGeneration]:
        self.requests.append(request)
        self._move(+1)
        try:
            await self.pause(-1)
            yield ScriptedGeneration(self, request)
        finally:
            self._move(-1)

    async def pause(self, outputs: int) -> None:
        if outputs == self.fail_at:
            assert self.error is not None
            raise self.error
        if outputs == self.stall_at:
            self.is_stalled.set()
            await asyncio.Event().wait()

    async def until(self, *, is_open: bool) -> None:
        """Waits until a request is under way, or until none is."""
        async with asyncio.timeout(10):
            while bool(self.open) is not is_open:
                await self.changed.wait()

    def _move(self, change: int) -> None:
        self.open += change
        self.changed.set()
        self.changed.clear()


class ScriptedGeneration:
    def __init__(self, backend: ScriptedBackend, request: GenerationRequest) -> None:
        self.route = Route()
        self._backend = backend
        self._request = request
        self._ended: set[int] = set()

    async def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        backend, request = self._backend, self._request
        sequences = {choice: self._sequence(choice) for choice in range(request.n)}
        given = 0
        while sequences:
            for choice, sequence in list(sequences.items()):
                await backend.pause(given)
                if given == backend.ends_silently_at:
                    return
                if given == 0:
                    self.route.prefill_worker, self.route.decode_worker = "prefill-0", "decode-0"
                    self.route.cached_tokens = backend.cached_tokens
                if choice in self._ended:
                    del sequences[choice]
                    continue
                token = self._token(sequence)
                sequence.await_token(0)
                model = backend.model
                output = sequence.learn(token, model.eos_token_ids, model.max_model_tokens)
                given += 1
                backend.outputs_given += 1
                if output.finish_reason is not None:
                    del sequences[choice]
                yield output
            await asyncio.sleep(0)

    def end_choice(self, choice: int) -> None:
        self._ended.add(choice)
        self._backend.ended_choices.append(choice)

    def _sequence(self, choice: int) -> EngineSequence:
        tokens = list(self._request.token_ids)
        return EngineSequence(
            self._request.request_id, choice, self._request.sampling, b"", tokens, len(tokens)
        )

    def _token(self, sequence: EngineSequence) -> Token:
        index, script, sampling = sequence.output_tokens, self._backend.script, sequence.sampling
        if sampling.is_greedy:
            said = [*script, EOS_TOKEN_ID]
            token_id = said[index % len(said)]
        else:
            token_id = 3 + (sequence.seed * 31 + index * 7919) % (VOCAB_SIZE - 40)
        if sampling.logprobs is None:
            return Token(index, token_id)
        likely = tuple(
            ((token_id + rank) % VOCAB_SIZE, -0.5 - rank if rank < 3 else -math.inf)
            for rank in range(sampling.logprobs)
        )
        return Token(index, token_id, -0.5, likely)
