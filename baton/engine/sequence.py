"""One sequence: its tokens, where their KV lives, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.block_hash import next_hash
from baton.request import FinishReason, SamplingParams, Token, TokenOutput


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one choice of one request (prompt, then output) and the blocks that hold their KV.

    block_ids[i] holds tokens [i * block_size, (i + 1) * block_size). computed_tokens counts the leading
    tokens whose K and V are in those blocks. block_hashes are the chained hashes of the leading full blocks.
    published_blocks counts those of them that the prefix cache knows. namespace seeds the chain. session_key: see
    `baton.request.GenerationRequest`.
    """

    request_id: str
    choice: int
    sampling: SamplingParams
    namespace: bytes
    token_ids: list[int]
    prompt_tokens: int
    block_ids: list[int] = field(default_factory=list)
    computed_tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    published_blocks: int = 0
    session_key: bytes = b""

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens whose KV is still to be computed before the next one can be drawn."""
        return len(self.token_ids) - self.computed_tokens

    @property
    def seed(self) -> int:
        return self.sampling.seed_of(self.choice)

    def extend_hashes(self, block_size: int, up_to_tokens: int) -> None:
        """Computes the hashes of all blocks that are full within the first `up_to_tokens` tokens."""
        while (start := len(self.block_hashes) * block_size) + block_size <= up_to_tokens:
            parent = self.block_hashes[-1] if self.block_hashes else self.namespace
            self.block_hashes.append(next_hash(parent, self.token_ids[start : start + block_size]))

    def append(self, token: Token, eos_token_ids: frozenset[int], max_model_tokens: int) -> TokenOutput:
        """Adds a generated token and tells whether the sequence ends with it."""
        self.token_ids.append(token.token_id)
        reason, stop_token_id = self._ending(token.token_id, eos_token_ids, max_model_tokens)
        return TokenOutput(self.choice, token, reason, stop_token_id)

    def _ending(
        self, token_id: int, eos_token_ids: frozenset[int], max_model_tokens: int
    ) -> tuple[FinishReason | None, int | None]:
        sampling = self.sampling
        is_eos = token_id in eos_token_ids and not sampling.ignore_eos
        if (is_eos or token_id in sampling.stop_token_ids) and self.output_tokens >= sampling.min_tokens:
            return FinishReason.STOP, token_id
        if self.output_tokens >= sampling.max_tokens or len(self.token_ids) >= max_model_tokens:
            return FinishReason.LENGTH, None
        return None, None
