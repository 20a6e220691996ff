"""Rank 0's view of the other ranks of its worker: processes that it starts, directs and ends.

start: spawn -> every rank is present -> all meet -> each loads its part -> ready
a step: `compute` to all, then rank 0's own part, which meets theirs in the collective's sums
a hand-off: each rank's agent takes part as a member of the worker's `TransferGroup`
the end: closing the channel ends a rank; a rank that ends first ends the worker
"""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from baton.engine.chunk_rows import ChunkRows
from baton.engine.engine_config import EngineConfig
from baton.engine.parallel import Collective, Parallel, Shard
from baton.errors import ERRORS_BY_CODE, ConfigError, WorkerFailed
from baton.kvtransfer.base import BlockIds, OnDone, SendSession, TransferResult, TransferState
from baton.kvtransfer.errors import from_peer
from baton.kvtransfer.stats import TransferStats
from baton.worker import rank_channel as say
from baton.worker.config import WorkerConfig
from baton.worker.rank_channel import RankChannel

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 60.0
"""A rank answers once it has carried out what came before, a step at most."""

_END_TIMEOUT_S = 5.0

OnLost = Callable[[BaseException], None]
Answer = TypeVar("Answer", bound=say.Report)


class RankGroup:
    """All ranks of a worker but its own; `ranks[i]` is rank i + 1. Implements `Followers`."""

    def __init__(self, config: WorkerConfig, engine: EngineConfig, on_lost: OnLost) -> None:
        """Starts the processes and meets them. engine: complete. on_lost: called from another thread with what
        became of a rank that ended by itself. Raises WorkerFailed where one cannot be started."""
        self._folder = Path(tempfile.mkdtemp(prefix="baton-ranks-"))
        meeting_point = self._folder / "meeting"
        self.ranks: list[RankProcess] = []
        self._collective: Collective | None = None
        try:
            for rank in range(1, engine.tp):
                self.ranks.append(RankProcess(_begin(config, engine, rank, meeting_point), on_lost))
            for process in self.ranks:
                process.answer(say.Present, START_TIMEOUT_S)
            shard = Shard(engine.tp, 0)
            self._collective = Collective(shard, meeting_point, engine.device)
            self.parallel = Parallel(shard, self._collective, self)
        except BaseException:
            self.close()
            raise

    def wait_until_ready(self) -> None:
        """Raises what kept a rank from loading its part."""
        for process in self.ranks:
            process.answer(say.Ready, START_TIMEOUT_S)

    def compute(self, rows: Sequence[ChunkRows]) -> None:
        order = say.Compute(list(rows))
        for process in self.ranks:
            process.send(order)

    def copy_block(self, source: int, target: int) -> None:
        for process in self.ranks:
            process.send(say.CopyBlock(source, target))

    def clear_tail(self, block_id: int, tokens: int) -> None:
        for process in self.ranks:
            process.send(say.ClearTail(block_id, tokens))

    def close(self) -> None:
        for process in self.ranks:
            process.let_go()
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        for process in self.ranks:
            process.wait_or_kill(deadline_s)
        if self._collective is not None:
            self._collective.close()
        shutil.rmtree(self._folder)


class RankProcess:
    """One rank. Implements `Handoffs`."""

    def __init__(self, begin: say.Begin, on_lost: OnLost) -> None:
        self._rank = begin.rank
        self._on_lost = on_lost
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "baton.worker.rank", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel = RankChannel(ours)
        self._is_let_go = False
        self._lost: WorkerFailed | None = None
        self._answers: queue.SimpleQueue[say.Report | WorkerFailed] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._keys = itertools.count()
        self._on_done: dict[int, OnDone] = {}
        self._bytes_sent = self._bytes_received = 0
        self._reader = threading.Thread(target=self._read, name=f"rank-{self._rank}", daemon=True)
        self._reader.start()
        self.send(begin)

    # --- orders --------------------------------------------------------------------------------------------

    def send(self, order: say.Order) -> None:
        """Raises WorkerFailed where the rank is gone."""
        try:
            self._channel.send(order)
        except BrokenPipeError as error:
            raise self._lost or WorkerFailed(f"rank {self._rank} is gone") from error

    def answer(self, kind: type[Answer], timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """The next answer. Raises WorkerFailed where it does not come, ConfigError as the rank reports it."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerFailed(f"rank {self._rank} has not answered for {timeout_s:g} s") from None
        match answer:
            case WorkerFailed():
                raise answer
            case say.Failed():
                raise ERRORS_BY_CODE.get(answer.code, ConfigError)(answer.message, field=answer.field)
            case say.Refused():
                raise from_peer(answer.error, answer.message)
            case _:
                assert isinstance(answer, kind), f"{answer} where {kind.__name__} is due"
                return answer

    # --- hand-offs -----------------------------------------------------------------------------------------

    def expect(
        self,
        positions: BlockIds,
        block_ids: BlockIds,
        ttl_s: float,
        on_done: OnDone,
        tokens: int | None = None,
    ) -> tuple[bytes, bytes]:
        key = self._register(on_done)
        order = say.Expect(
            key=key, positions=_listed(positions), block_ids=_listed(block_ids), ttl_s=ttl_s, tokens=tokens
        )
        with self._asking:
            self.send(order)
            promised = self.answer(say.Promised)
        return _name(key), promised.ticket

    def fence(self, transfer_id: bytes, reason: str) -> None:
        self.fence_key(int.from_bytes(transfer_id, "little"), reason)

    def fence_key(self, key: int, reason: str) -> None:
        with self._asking:
            self.send(say.Fence(key, reason))
            self.answer(say.Fenced)

    def open(self, sealed: bytes, on_done: OnDone, deadline_s: float | None = None) -> SendSession:
        """What keeps the rank from taking the ticket up comes through `on_done`, for it is not waited for."""
        key = self._register(on_done)
        self.send(say.OpenTicket(key=key, ticket=sealed, deadline_s=deadline_s))
        return _RankSession(self, key)

    def stats(self) -> TransferStats:
        """Bytes alone, as of the last transfer that ended."""
        return TransferStats(0, self._bytes_sent, 0, self._bytes_received, 0, 0, 0, {}, {})

    def _register(self, on_done: OnDone) -> int:
        key = next(self._keys)
        self._on_done[key] = on_done
        return key

    # --- what comes back -----------------------------------------------------------------------------------

    def _read(self) -> None:
        while (report := self._channel.receive()) is not None:
            if isinstance(report, say.Ended):
                self._tell(report)
            else:
                assert isinstance(report, say.Report), f"a rank never says {report}"
                self._answers.put(report)
        if not self._is_let_go:
            self._lost = WorkerFailed(self._describe_end())
            self._answers.put(self._lost)
            self._on_lost(self._lost)

    def _tell(self, ended: say.Ended) -> None:
        self._bytes_sent, self._bytes_received = ended.bytes_sent, ended.bytes_received
        on_done = self._on_done.pop(ended.key, None)
        if on_done is not None:
            on_done(_result(ended))

    def _describe_end(self) -> str:
        code = self._process.wait(ANSWER_TIMEOUT_S)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"rank {self._rank} of this worker (process {self._process.pid}) {how}"

    # --- the end -------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        self._is_let_go = True
        if self._process.poll() is None:
            self._channel.shut()

    def wait_or_kill(self, deadline_s: float) -> None:
        """Waits until `deadline_s` (monotonic clock), then ends the process for good."""
        try:
            self._process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join()
        self._channel.close()


class _RankSession(SendSession):
    def __init__(self, process: RankProcess, key: int) -> None:
        self._process = process
        self._key = key

    def push(self, positions: BlockIds, block_ids: BlockIds) -> None:
        self._process.send(say.PushBlocks(self._key, _listed(positions), _listed(block_ids)))

    def fence(self, reason: str) -> None:
        self._process.fence_key(self._key, reason)


def _begin(config: WorkerConfig, engine: EngineConfig, rank: int, meeting_point: Path) -> say.Begin:
    return say.Begin(
        rank=rank,
        engine=engine,
        meeting_point=str(meeting_point),
        secret=config.secret,
        schemes=config.schemes,
        host=config.advertise_host or config.host,
        kv_port=config.kv_port and config.kv_port + rank,
    )


def _listed(ids: BlockIds) -> list[int]:
    listed: list[int] = np.asarray(ids, np.int64).tolist()
    return listed


def _name(key: int) -> bytes:
    return key.to_bytes(8, "little")


def _result(ended: say.Ended) -> TransferResult:
    return TransferResult(
        _name(ended.key),
        TransferState.FAILED if ended.error else TransferState.DONE,
        ended.blocks,
        ended.bytes,
        from_peer(ended.error, ended.message) if ended.error else None,
        ended.opened_at_s,
        ended.first_byte_at_s,
        ended.last_byte_at_s,
        ended.done_at_s,
        ended.scheme,
    )
