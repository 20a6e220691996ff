"""What is sent to a simulated fleet: requests as lengths and block hashes, never as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from baton.block_hash import HASH_BYTES


@dataclass(frozen=True, slots=True)
class SimRequest:
    """arrival_s: from the first request on. hashes: of the prompt's full blocks and, where it is known that later
    prompts continue this answer, of the blocks that it fills; equal hashes mean equal prefixes. priority, tenant:
    as in `baton.request.GenerationRequest`."""

    number: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[bytes, ...]
    session_key: str | None = None
    priority: int = 0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """block_tokens: what a hash stands for; the simulated pools count in the same blocks."""

    name: str
    block_tokens: int
    requests: Sequence[SimRequest]

    def at_rate(self, factor: float) -> Workload:
        """The same requests, arriving `factor` times as fast."""
        faster = [replace(request, arrival_s=request.arrival_s / factor) for request in self.requests]
        return replace(self, requests=faster)

    def unlimited_hit_rate(self) -> float:
        """Share of prompt tokens that one cache without bounds would have held: no fleet can do better."""
        seen: set[bytes] = set()
        cached_tokens = total_tokens = 0
        for request in self.requests:
            total_tokens += request.prompt_tokens
            for block_hash in request.hashes[: (request.prompt_tokens - 1) // self.block_tokens]:
                if block_hash not in seen:
                    break
                cached_tokens += self.block_tokens
            seen.update(request.hashes)
        return cached_tokens / total_tokens if total_tokens else 0.0


def hash_of(*parts: int) -> bytes:
    """A name for one block's content, as long as a real hash; unlike that of as many other `parts`, one or two."""
    return b"".join(part.to_bytes(HASH_BYTES // len(parts), "little") for part in parts)
