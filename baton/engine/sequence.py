"""One sequence: its tokens, where their KV lives, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.block_hash import next_hash
from baton.request import FinishReason, SamplingParams, Token, TokenOutput


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one choice of one request (prompt, then output) and the blocks that hold their KV.

    block_ids[i] holds tokens [i * block_size, (i + 1) * block_size). computed_tokens counts the leading
    tokens whose K and V are in those blocks; the in_flight_tokens behind them are being computed. A token that is
    being drawn has an id below 0 (see `await_token`). block_hashes are the chained hashes of the leading full
    blocks. published_blocks counts those of them that the prefix cache knows. namespace seeds the chain.
    session_key: see `baton.request.GenerationRequest`.
    """

    request_id: str
    choice: int
    sampling: SamplingParams
    namespace: bytes
    token_ids: list[int]
    prompt_tokens: int
    block_ids: list[int] = field(default_factory=list)
    computed_tokens: int = 0
    in_flight_tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    published_blocks: int = 0
    session_key: bytes = b""

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def launched_tokens(self) -> int:
        """Leading tokens whose KV is computed or being computed: where the next step goes on."""
        return self.computed_tokens + self.in_flight_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens whose KV no step has taken up yet, and has to before the next one can be drawn."""
        return len(self.token_ids) - self.launched_tokens

    @property
    def seed(self) -> int:
        return self.sampling.seed_of(self.choice)

    def extend_hashes(self, block_size: int, up_to_tokens: int) -> None:
        """Computes the hashes of all blocks that are full within the first `up_to_tokens` tokens."""
        while (start := len(self.block_hashes) * block_size) + block_size <= up_to_tokens:
            parent = self.block_hashes[-1] if self.block_hashes else self.namespace
            self.block_hashes.append(next_hash(parent, self.token_ids[start : start + block_size]))

    def await_token(self, place: int) -> None:
        """Adds a token that is being drawn, as the one at `place` (from 0) of its step: its id is `~place`."""
        self.token_ids.append(~place)

    def forget_awaited(self) -> None:
        """Takes back the tokens that are being drawn."""
        while self.token_ids and self.token_ids[-1] < 0:
            self.token_ids.pop()

    def learn(self, token: Token, eos_token_ids: frozenset[int], max_model_tokens: int) -> TokenOutput:
        """Takes the first of the awaited tokens and tells whether the sequence ends with it."""
        place = self.prompt_tokens + token.index
        assert self.token_ids[place] < 0, f"token {token.index} of {self.request_id} is known already"
        self.token_ids[place] = token.token_id
        reason, stop_token_id = self._ending(token, eos_token_ids, max_model_tokens)
        return TokenOutput(self.choice, token, reason, stop_token_id)

    def is_full(self, max_model_tokens: int) -> bool:
        """Whether its last token, known or awaited, is one too many to be followed by another."""
        return self._is_full_with(self.output_tokens, max_model_tokens)

    def _is_full_with(self, output_tokens: int, max_model_tokens: int) -> bool:
        return (
            output_tokens >= self.sampling.max_tokens
            or self.prompt_tokens + output_tokens >= max_model_tokens
        )

    def _ending(
        self, token: Token, eos_token_ids: frozenset[int], max_model_tokens: int
    ) -> tuple[FinishReason | None, int | None]:
        sampling, output_tokens = self.sampling, token.index + 1
        is_eos = token.token_id in eos_token_ids and not sampling.ignore_eos
        if (is_eos or token.token_id in sampling.stop_token_ids) and output_tokens >= sampling.min_tokens:
            return FinishReason.STOP, token.token_id
        if self._is_full_with(output_tokens, max_model_tokens):
            return FinishReason.LENGTH, None
        return None, None
