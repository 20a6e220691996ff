"""What a router has under way at its workers: one account a worker, and a hold on two of them for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from baton.fleet import Member, Role, WorkerInfo, WorkerState
from baton.request import GenerationRequest
from baton.router.caches import Expectation
from baton.router.decode_peer import DecodePeer
from baton.router.prediction import Prediction
from baton.router.prefill_peer import PrefillPeer


@dataclass(slots=True)
class Tracked:
    """One worker: what it reported last, and what this router has under way there.

    prefill_tokens, prefill_s: uncached, of prompts not computed yet, and the seconds predicted for these.
    queued_sequences: of the sequences, whose prompts still queue for a prefill worker.
    context_tokens: that the sequences began with.
    is_member: False once the registry has forgotten it; it gets nothing new then, and is kept only while
    requests that run there go on. A worker that was merely silent for too long loses none of them so.
    silence: ends what a forgotten prefill worker has left to finish its prompts.
    kv_bytes_per_token: of a hand-off, all ranks together.
    """

    member: Member
    peer: PrefillPeer | DecodePeer
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    sequences: int = 0
    queued_sequences: int = 0
    context_tokens: int = 0
    leases: int = 0
    is_member: bool = True
    silence: asyncio.TimerHandle | None = None
    kv_bytes_per_token: float = 0.0

    @property
    def worker(self) -> WorkerInfo:
        return self.member.worker

    def serves(self, role: Role) -> bool:
        return (
            self.worker.role is role
            and self.is_member
            and self.member.state in (WorkerState.READY, WorkerState.SUSPECTED)
            and self.peer.is_connected
        )

    def pool_blocks(self) -> int:
        return self.member.load.kv_blocks.total

    def context_of(self, sequences: int) -> int:
        """Tokens that so many sequences see in a step, if others' are as long as our own. Blocks do not tell: who
        shares a prefix shares its blocks, and still each reads them."""
        return self.context_tokens * sequences // self.sequences if self.sequences else 0

    def forget(self, silence_s: float) -> None:
        """A decode worker's stream tells whether it lives; a prefill worker has none, so its membership does."""
        self.is_member = False
        if isinstance(self.peer, PrefillPeer):
            why = f"nothing was heard of {self.worker.worker_id}"
            self.silence = asyncio.get_running_loop().call_later(silence_s, self.peer.give_up, why)

    def come_back(self) -> None:
        self.is_member = True
        if self.silence is not None:
            self.silence.cancel()
            self.silence = None

    def note_state(self) -> None:
        if isinstance(self.peer, DecodePeer):
            self.peer.note_leaving(self.member.state is WorkerState.DRAINING)


class Lease:
    """A request's hold on its two workers, which are one where the prefill is local."""

    def __init__(
        self,
        prefill: Tracked,
        decode: Tracked,
        prediction: Prediction,
        request: GenerationRequest,
        expectation: Expectation | None,
        on_change: Callable[[Tracked], None],
    ) -> None:
        """expectation: that the prompt will be cached on its prefill worker. on_change: hears of each worker whose
        load this lease has changed."""
        assert isinstance(decode.peer, DecodePeer), f"{decode.worker.worker_id} is no decode worker"
        self.decode = decode.peer
        self.prefill = prefill.peer if isinstance(prefill.peer, PrefillPeer) else None
        self.tracked = (prefill, decode)
        self._prefill_tokens = prediction.prefill_tokens
        self._prefill_s = prediction.prefill_s
        self._sequences = request.n
        self._queued_sequences = request.n if self.prefill is not None else 0
        self._context_tokens = request.n * len(request.token_ids)
        self._expectation = expectation
        self._on_change = on_change
        prefill.prefill_tokens += self._prefill_tokens
        prefill.prefill_s += self._prefill_s
        decode.sequences += self._sequences
        decode.queued_sequences += self._queued_sequences
        decode.context_tokens += self._context_tokens
        for tracked in self.tracked:
            tracked.leases += 1
            on_change(tracked)

    def scheduled(self) -> None:
        """The prompt is computed now and queues no longer."""
        decode = self.tracked[1]
        decode.queued_sequences -= self._queued_sequences
        self._queued_sequences = 0
        self._on_change(decode)

    def prefill_done(self) -> None:
        """The prompt is computed and no longer queues before others."""
        prefill = self.tracked[0]
        prefill.prefill_tokens -= self._prefill_tokens
        prefill.prefill_s = prefill.prefill_s - self._prefill_s if prefill.prefill_tokens else 0.0
        self._prefill_tokens, self._prefill_s = 0, 0.0
        if self._expectation is not None:
            self._expectation.end()
        self._on_change(prefill)

    def moved_on(self) -> None:
        """The sequences decode elsewhere now."""
        decode = self.tracked[1]
        decode.sequences -= self._sequences
        decode.queued_sequences -= self._queued_sequences
        decode.context_tokens -= self._context_tokens
        self._sequences = self._queued_sequences = self._context_tokens = 0
        self._on_change(decode)

    def end(self) -> None:
        self.prefill_done()
        for tracked in self.tracked:
            tracked.leases -= 1
        self.moved_on()
