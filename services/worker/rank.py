"""The process of a rank other than 0: carries out rank 0's orders in their order, and ends when rank 0 does.

Started by `ranks`, as `python -m baton.worker.rank FD` with one end of a socket pair.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from pathlib import Path

from baton.engine.parallel import Collective, Shard
from baton.engine.ranks import RankEngine
from baton.errors import BatonError
from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import OnDone, SendSession, TransferResult
from baton.kvtransfer.errors import TransferError
from baton.loaded import spare_what_is_loaded
from baton.parent_process import die_with_parent
from baton.worker import rank_channel as say
from baton.worker.rank_channel import RankChannel
from baton.worker.transfer import make_agent

_log = logging.getLogger(__name__)


class Rank:
    """One rank's engine and agent behind its channel."""

    def __init__(self, channel: RankChannel, engine: RankEngine, agent: TransferAgent) -> None:
        self._channel = channel
        self._engine = engine
        self._agent = agent
        self._expected: dict[int, bytes] = {}
        self._sessions: dict[int, SendSession] = {}
        self._lock = threading.Lock()  # a transfer may end before it is noted here that it began

    def serve(self) -> None:
        """Until rank 0 is gone."""
        while (order := self._channel.receive()) is not None:
            self._carry_out(order)

    def _carry_out(self, order: say.Order | say.Report) -> None:
        match order:
            case say.Compute():
                self._engine.compute(order.rows)
            case say.CopyBlock():
                self._engine.copy_block(order.source, order.target)
            case say.ClearTail():
                self._engine.clear_tail(order.block_id, order.tokens)
            case say.Expect():
                self._channel.send(self._expect(order))
            case say.OpenTicket():
                self._open(order)
            case say.PushBlocks():
                session = self._sessions.get(order.key)
                if session is not None:
                    session.push(order.positions, order.block_ids)
            case say.Fence():
                self._fence(order)
                self._channel.send(say.Fenced())
            case _:
                raise AssertionError(f"rank 0 never says {order}")

    def _expect(self, order: say.Expect) -> say.Promised | say.Refused:
        tell = self._teller(order.key)
        try:
            with self._lock:
                self._expected[order.key], ticket = self._agent.expect(
                    order.positions, order.block_ids, order.ttl_s, tell, order.tokens
                )
        except TransferError as error:
            return say.Refused(type(error).__name__, str(error))
        return say.Promised(ticket)

    def _open(self, order: say.OpenTicket) -> None:
        tell = self._teller(order.key)
        try:
            with self._lock:
                self._sessions[order.key] = self._agent.open(order.ticket, tell, order.deadline_s)
        except TransferError as error:
            self._tell(order.key, error, None)

    def _fence(self, order: say.Fence) -> None:
        with self._lock:
            transfer_id = self._expected.pop(order.key, None)
            session = self._sessions.pop(order.key, None)
        if transfer_id is not None:
            self._agent.fence(transfer_id, order.reason)
        if session is not None:
            session.fence(order.reason)

    def _teller(self, key: int) -> OnDone:
        return lambda result: self._tell(key, result.error, result)

    def _tell(self, key: int, error: TransferError | None, result: TransferResult | None) -> None:
        """From any thread: a transfer has ended, or with no result never began."""
        if error is None:
            with self._lock:
                self._expected.pop(key, None)
                self._sessions.pop(key, None)
        stats = self._agent.stats()
        ended = say.Ended(
            key=key,
            blocks=result.blocks if result else 0,
            bytes=result.bytes if result else 0,
            error=type(error).__name__ if error else "",
            message=str(error) if error else "",
            opened_at_s=result.opened_at_s if result else 0.0,
            first_byte_at_s=result.first_byte_at_s if result else 0.0,
            last_byte_at_s=result.last_byte_at_s if result else 0.0,
            done_at_s=result.done_at_s if result else 0.0,
            scheme=result.scheme if result else "",
            bytes_sent=stats.bytes_sent,
            bytes_received=stats.bytes_received,
        )
        try:
            self._channel.send(ended)
        except BrokenPipeError:
            _log.info("rank 0 is gone and cannot be told that transfer %d has ended", key)


def main() -> None:
    die_with_parent()  # the closed channel tells it too, but not to a rank that hangs
    channel = RankChannel(socket.socket(fileno=int(sys.argv[1])))
    begin = channel.receive()
    if begin is None:
        return
    assert isinstance(begin, say.Begin), begin
    logging.basicConfig(format=f"%(asctime)s %(levelname)-7s [rank {begin.rank}] %(message)s")
    channel.send(say.Present())
    shard = Shard(begin.engine.tp, begin.rank)
    collective = Collective(shard, Path(begin.meeting_point), begin.engine.device)
    try:
        engine = RankEngine(begin.engine, shard, collective)
        agent = make_agent(
            engine.model, engine.pool, shard, begin.secret, begin.schemes, begin.host, begin.kv_port
        )
    except BatonError as error:
        channel.send(say.Failed(error.code, error.message, error.field))
        return
    spare_what_is_loaded()
    channel.send(say.Ready())
    Rank(channel, engine, agent).serve()
    agent.close()
    engine.close()


if __name__ == "__main__":
    main()
