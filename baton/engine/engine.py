"""One model replica with its KV pool: sequences take blocks, chunks run, tokens come out.

Owned by one thread (`baton.engine.loop`); schedulers decide, the engine does.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext

import torch

from baton import block_hash
from baton.engine.batch import Chunk
from baton.engine.block_manager import BlockManager
from baton.engine.chunk_rows import ChunkRows
from baton.engine.decode_graphs import CudaRecorder
from baton.engine.engine_config import EngineConfig, complete, make_pool
from baton.engine.flight import Flight
from baton.engine.memory import exhaustion_named
from baton.engine.model import CausalLM
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import WHOLE, Parallel
from baton.engine.runner import ModelRunner
from baton.engine.sampler import NonFiniteLogits, Sampler
from baton.engine.sequence import Sequence
from baton.engine.step_work import StepWork
from baton.errors import InvalidRequest
from baton.request import GenerationRequest, TokenOutput


class Engine:
    """Loads at construction; raises ModelFolderError or ConfigError before anything is served.

    A step is launched and lands. Up to two are in flight at a time, and the later one takes the tokens of the
    earlier where they are drawn, on the device.
    """

    def __init__(self, config: EngineConfig, parallel: Parallel | None = None) -> None:
        """parallel: the group of `config.tp` ranks that this is rank 0 of; `config` is complete then."""
        assert (parallel is None) == (config.tp == 1), f"tp {config.tp} needs a group of as many ranks"
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        shard, collective = (WHOLE, None) if parallel is None else (parallel.shard, parallel.collective)
        self.config = config = complete(config) if parallel is None else config
        self.model = ModelConfig.from_folder(config.model, config.dtype, config.max_model_tokens)
        model = CausalLM.load(self.model, config.device, shard, collective)
        self.pool = make_pool(config, shard.config(self.model), config.device)
        self._followers = None if parallel is None else parallel.followers
        self.blocks = BlockManager(self.pool.num_blocks, config.block_size)
        self._eos_token_ids = frozenset(self.model.eos_token_ids)
        sampler = Sampler(self.model.vocab_size, self._eos_token_ids)
        is_beside_host = config.device.startswith("cuda")
        # Other ranks are told tokens, not where on this one's device they are drawn.
        self.overlaps = parallel is None and (is_beside_host if config.overlap is None else config.overlap)
        self._flights: deque[Flight] = deque()
        self._landed_work = StepWork()
        self._runner = ModelRunner(model, self.pool, sampler, config.device, config.attention)
        self.max_model_tokens = min(self.model.max_model_tokens, self.pool.num_blocks * config.block_size)
        if parallel is None and self._runner.can_record:
            self._runner.record_decodes(self.max_model_tokens, CudaRecorder())

    @property
    def block_size(self) -> int:
        return self.config.block_size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def refusal_of(self, token_ids: tuple[int, ...]) -> InvalidRequest | None:
        """Why no sequence can begin with these tokens; None where one can."""
        tokens, limit, vocab_size = len(token_ids), self.max_model_tokens, self.model.vocab_size
        if tokens >= limit:
            return InvalidRequest(f"the prompt has {tokens} tokens, at most {limit - 1} fit", field="prompt")
        if (largest := max(token_ids)) >= vocab_size:
            return InvalidRequest(f"token id {largest} is not below {vocab_size}", field="prompt")
        return None

    def new_sequence(self, request: GenerationRequest, choice: int) -> Sequence:
        variant = self.model.prefix_cache_variant(request.prompt_tokens)
        salt = f"{request.cache_salt}\0{variant}" if variant else request.cache_salt
        namespace = block_hash.namespace(self.model.kv_fingerprint, cache_salt=salt)
        tokens, prompt_tokens = list(request.token_ids), request.prompt_tokens
        return Sequence(
            request.request_id,
            choice,
            request.sampling,
            namespace,
            tokens,
            prompt_tokens,
            session_key=request.session_key,
        )

    def cached_tokens(self, sequence: Sequence) -> int:
        """Leading tokens whose KV is cached now and would not have to be computed before the next token."""
        sequence.extend_hashes(self.block_size, len(sequence.token_ids))
        reusable = (len(sequence.token_ids) - 1) // self.block_size
        return self.blocks.match(sequence.block_hashes[:reusable]) * self.block_size

    def take_cached_prefix(self, sequence: Sequence, max_tokens: int) -> int:
        """Gives a sequence without blocks its longest cached prefix, of at most `max_tokens` tokens; returns
        how many tokens that is."""
        assert not sequence.block_ids, f"{sequence.request_id} already holds blocks"
        sequence.extend_hashes(self.block_size, len(sequence.token_ids))
        hashes = sequence.block_hashes[: max_tokens // self.block_size]
        sequence.block_ids = self.blocks.acquire(hashes, sequence.session_key)
        sequence.published_blocks = len(sequence.block_ids)
        sequence.computed_tokens = len(sequence.block_ids) * self.block_size
        return sequence.computed_tokens

    def grow(self, sequence: Sequence, tokens: int) -> list[int]:
        """Extends a sequence's blocks to hold `tokens` tokens; returns the fresh ones. Raises OutOfBlocks,
        having taken nothing."""
        fresh = self.blocks.allocate(max(0, self.blocks_for(tokens) - len(sequence.block_ids)))
        sequence.block_ids.extend(fresh)
        return fresh

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Gives `child` the KV of the prompt that it has in common with `parent`: full blocks shared, the
        partial last one copied. Raises OutOfBlocks, having taken nothing."""
        assert not child.block_ids, f"{child.request_id} already holds blocks"
        full, partial = divmod(parent.prompt_tokens, self.block_size)
        own = self.blocks.allocate(1 if partial else 0)
        shared = parent.block_ids[:full]
        self.blocks.share(shared)
        for block_id in own:
            self._copy_block(parent.block_ids[full], block_id)
        child.block_ids = shared + own
        child.block_hashes = parent.block_hashes[:full]
        child.published_blocks = min(full, parent.published_blocks)
        child.computed_tokens = parent.prompt_tokens

    def mark_computed(self, sequence: Sequence, tokens: int) -> None:
        """Tells that the first `tokens` tokens have their KV in the sequence's blocks; full blocks become
        reusable."""
        sequence.computed_tokens = tokens
        sequence.extend_hashes(self.block_size, tokens)
        full, hashes = tokens // self.block_size, sequence.block_hashes
        for index in range(sequence.published_blocks, full):
            parent_hash = hashes[index - 1] if index else None
            token_ids = sequence.token_ids[index * self.block_size : (index + 1) * self.block_size]
            self.blocks.publish(
                sequence.block_ids[index], hashes[index], parent_hash, token_ids, sequence.session_key
            )
        sequence.published_blocks = max(sequence.published_blocks, full)

    def clear_tail(self, sequence: Sequence, tokens: int) -> None:
        """Zeroes what lies behind `tokens` tokens in their last block: a block that leaves carries nothing of
        a request that held it before."""
        full, partial = divmod(tokens, self.block_size)
        if partial:
            if self._followers is not None:
                self._followers.clear_tail(sequence.block_ids[full], partial)
            self.pool.clear_tail(sequence.block_ids[full], partial)

    def free(self, sequence: Sequence) -> None:
        """Gives back all blocks, those that a step in flight may write to when it has landed; the sequence could be
        computed anew from the tokens that are known."""
        block_ids, sequence.block_ids = sequence.block_ids, []
        were_here = [flight.drop(sequence) for flight in self._flights]  # dropped from each of them
        if any(were_here):
            self._flights[-1].held_block_ids += block_ids
        else:
            self.blocks.release(block_ids)
        sequence.forget_awaited()
        sequence.published_blocks = 0
        sequence.computed_tokens = sequence.in_flight_tokens = 0

    def run(self, chunks: list[Chunk]) -> list[tuple[Sequence, TokenOutput]]:
        """One step, launched and landed, where none is in flight; raises as `launch` and `land` do."""
        assert not self._flights, "another step would land in its place"
        self.launch(chunks)
        return self.land()

    @property
    def in_flight(self) -> int:
        """Steps that were launched and have not landed."""
        return len(self._flights)

    def launch(self, chunks: list[Chunk]) -> None:
        """Has the device compute all chunks (at least one) in one forward pass and draw one token for each sampler.
        Raises StepOutOfMemory, having changed nothing, unless there are other ranks, which have gone on."""
        assert len(self._flights) < 2, "a third step could not know whose tokens it takes"
        if self._followers is not None:
            self._followers.compute([ChunkRows.of(chunk, self.block_size) for chunk in chunks])
        being_drawn = self._flights[-1].drawn.token_ids if self._flights else None
        with nullcontext() if self._followers is not None else exhaustion_named():
            drawn = self._runner.launch(chunks, being_drawn)
        self._flights.append(Flight(chunks, drawn))

    def land(self) -> list[tuple[Sequence, TokenOutput]]:
        """Waits for the earliest step in flight and tells what it has drawn. Raises NonFiniteLogits, having
        withdrawn all steps in flight."""
        try:
            drawn = self._flights[0].tokens()
        except NonFiniteLogits:
            self.withdraw()
            raise
        flight = self._flights.popleft()
        self.blocks.release(flight.held_block_ids)
        for chunk in flight.chunks:
            chunk.sequence.in_flight_tokens -= chunk.length
            self.mark_computed(chunk.sequence, chunk.sequence.computed_tokens + chunk.length)
        self._landed_work = flight.work
        return [
            (sequence, sequence.learn(token, self._eos_token_ids, self.max_model_tokens))
            for sequence, token in drawn
        ]

    def withdraw(self) -> None:
        """Waits for the steps in flight and leaves everything as if they had not been launched."""
        while self._flights:
            flight = self._flights.pop()
            flight.withdraw()
            self.blocks.release(flight.held_block_ids)

    def take_landed_work(self) -> StepWork:
        """How much the step computed that landed last; nothing where none has since the last call."""
        work, self._landed_work = self._landed_work, StepWork()
        return work

    def close(self) -> None:
        self.withdraw()
        self.pool.close()

    def _copy_block(self, source: int, target: int) -> None:
        if self._followers is not None:
            self._followers.copy_block(source, target)
        self.pool.copy_block(source, target)
