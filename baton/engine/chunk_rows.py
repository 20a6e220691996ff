"""What is left of a chunk once it is to be computed: plain numbers, fit to be sent to another process."""

from __future__ import annotations

import msgspec

from baton.engine.batch import Chunk


class ChunkRows(msgspec.Struct, frozen=True, array_like=True):
    """token_ids: of the chunk alone, at positions from `start` on; below 0 where a token is being drawn (see
    `Sequence.await_token`). block_ids: those that the context up to the chunk's end needs. samplers: how many
    sequences draw from its last row."""

    token_ids: list[int]
    start: int
    prompt_tokens: int
    block_ids: list[int]
    samplers: int

    @classmethod
    def of(cls, chunk: Chunk, block_size: int) -> ChunkRows:
        sequence, start = chunk.sequence, chunk.sequence.launched_tokens
        end = start + chunk.length
        assert chunk.length > 0, "a chunk has at least one token"
        assert end <= len(sequence.token_ids), "a chunk reaches beyond its sequence's tokens"
        blocks = -(-end // block_size)
        assert len(sequence.block_ids) >= blocks, "a chunk's blocks must be allocated"
        return cls(
            sequence.token_ids[start:end],
            start,
            sequence.prompt_tokens,
            sequence.block_ids[:blocks],
            len(chunk.samplers),
        )
