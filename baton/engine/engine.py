"""One model replica with its KV pool: sequences take blocks, chunks run, tokens come out.

Owned by one thread (`baton.engine.loop`); schedulers decide, the engine does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from baton import block_hash
from baton.engine.batch import Chunk
from baton.engine.block_manager import BlockManager
from baton.engine.chunk_rows import ChunkRows
from baton.engine.decode_graphs import CudaRecorder
from baton.engine.kv_pool import KVPool
from baton.engine.memory import available_bytes, exhaustion_named
from baton.engine.model import CausalLM
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import WHOLE, Parallel, Shard
from baton.engine.runner import ModelRunner
from baton.engine.sampler import Sampler
from baton.engine.sequence import Sequence
from baton.engine.step_work import StepWork
from baton.errors import ConfigError
from baton.request import GenerationRequest, TokenOutput

CPU_KV_MEMORY_SHARE = 0.1
GPU_KV_MEMORY_SHARE = 0.9
"""Share of the memory free at start that the KV pool takes where no number of blocks is given."""

MAX_DEFAULT_CPU_KV_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from.

    dtype: "auto" (the folder's own), "float32", "bfloat16" or "float16". block_size: tokens a block.
    kv_blocks: None sizes the pool from free memory. max_model_tokens: prompt and output together; None takes
    the model's own. threads: of torch's kernels, None leaves torch's choice. tp: ranks, each a process, that
    share the model (see `parallel`).
    """

    model: Path
    dtype: str = "auto"
    device: str = "cpu"
    block_size: int = 16
    kv_blocks: int | None = None
    max_model_tokens: int | None = None
    attention: str = "auto"
    threads: int | None = None
    tp: int = 1


class Engine:
    """Loads at construction; raises ModelFolderError or ConfigError before anything is served."""

    def __init__(self, config: EngineConfig, parallel: Parallel | None = None) -> None:
        """parallel: the group of `config.tp` ranks that this is rank 0 of; `config` is complete then."""
        assert (parallel is None) == (config.tp == 1), f"tp {config.tp} needs a group of as many ranks"
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        shard, collective = (WHOLE, None) if parallel is None else (parallel.shard, parallel.collective)
        self.config = config = complete(config)
        self.model = ModelConfig.from_folder(config.model, config.dtype, config.max_model_tokens)
        model = CausalLM.load(self.model, config.device, shard, collective)
        self.pool = make_pool(config, shard.config(self.model), config.device)
        self._followers = None if parallel is None else parallel.followers
        self.blocks = BlockManager(self.pool.num_blocks, config.block_size)
        self._eos_token_ids = frozenset(self.model.eos_token_ids)
        sampler = Sampler(self.model.vocab_size, self._eos_token_ids)
        self.last_work = StepWork()
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
        """Gives back all blocks; the sequence could be computed anew from its tokens."""
        self.blocks.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.published_blocks = 0
        sequence.computed_tokens = 0

    def run(self, chunks: list[Chunk]) -> list[tuple[Sequence, TokenOutput]]:
        """One step: computes all chunks in one forward pass and draws one token for each sampler. Raises
        StepOutOfMemory, having changed nothing that counts, unless there are other ranks, which have gone on."""
        if self._followers is not None and chunks:
            self._followers.compute([ChunkRows.of(chunk, self.block_size) for chunk in chunks])
        self.last_work = StepWork.of(chunks)
        with nullcontext() if self._followers is not None else exhaustion_named():
            tokens = iter(self._runner.run(chunks))
        for chunk in chunks:
            self.mark_computed(chunk.sequence, chunk.sequence.computed_tokens + chunk.length)
        return [
            (sampler, sampler.append(next(tokens), self._eos_token_ids, self.max_model_tokens))
            for sampler in _samplers(chunks)
        ]

    def close(self) -> None:
        self.pool.close()

    def _copy_block(self, source: int, target: int) -> None:
        if self._followers is not None:
            self._followers.copy_block(source, target)
        self.pool.copy_block(source, target)


def _samplers(chunks: Iterable[Chunk]) -> Iterable[Sequence]:
    return (sampler for chunk in chunks for sampler in chunk.samplers)


def complete(config: EngineConfig) -> EngineConfig:
    """`config` with the number of blocks, for all ranks the same. Raises ModelFolderError and ConfigError for what
    cannot be served, before anything is loaded."""
    _check_device(config.device)
    model = ModelConfig.from_folder(config.model, config.dtype, config.max_model_tokens)
    shard = Shard(config.tp).config(model)
    _check_device(Shard(config.tp, config.tp - 1).device(config.device))
    num_blocks = config.kv_blocks
    if num_blocks is None:
        on_one_device = 1 if config.device.startswith("cuda") else config.tp
        pool_bytes = _default_kv_bytes(config.device) // on_one_device
        num_blocks = pool_bytes // shard.kv_block_bytes(config.block_size)
    if num_blocks < 2:
        raise ConfigError(f"kv_blocks is {num_blocks}, at least 2 are needed", field="kv_blocks")
    return dataclasses.replace(config, kv_blocks=num_blocks)


def make_pool(config: EngineConfig, model: ModelConfig, device: str) -> KVPool:
    """The pool of one rank; `config` is complete, `model` has the rank's own heads."""
    assert config.kv_blocks is not None, "the configuration is not complete"
    return KVPool(
        config.kv_blocks,
        config.block_size,
        model.num_layers,
        model.num_kv_heads,
        model.head_dim,
        model.dtype,
        device,
    )


def _check_device(device: str) -> None:
    """Raises ConfigError for a device that is not there, before anything is loaded."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"device {device!r} is unknown (choices: cpu, cuda, cuda:N)", field="device")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} of CUDA",
            field="device",
        )


def _default_kv_bytes(device: str) -> int:
    available = available_bytes(torch.device(device))
    if device.startswith("cuda"):
        return int(available * GPU_KV_MEMORY_SHARE)
    return min(MAX_DEFAULT_CPU_KV_BYTES, int(available * CPU_KV_MEMORY_SHARE))
