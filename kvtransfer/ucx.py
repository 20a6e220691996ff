"""`ucx://`: over whatever UCX finds between two processes (RDMA, shared memory, TCP).

    sender's pool ---> ring of frames --- read by the receiver over UCX ---> frame (L2) ---> receiver's pool

What `tcp` does to reach, prove and watch a peer is done the same way here, over the same kind of socket; only
the blocks' bytes take UCX's way, and only once the peer has proved itself is there a worker of UCX to talk to.
The receiver reads, for a read that comes too late changes nothing at either end; a write would.

As RDMA does, UCX trusts its network: keep it to one that only the cluster reaches. `UCX_TLS`, `UCX_NET_DEVICES`
and all else that UCX takes from the environment hold.
"""

from __future__ import annotations

from typing import ClassVar

from baton.kvtransfer import ucp
from baton.kvtransfer.carrier import Packer, Unpacker
from baton.kvtransfer.errors import SchemeUnavailable
from baton.kvtransfer.link import LinkOwner
from baton.kvtransfer.receiving import ReceiveChannel
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.stream_link import StreamLink
from baton.kvtransfer.tcp import TcpTransport
from baton.kvtransfer.transport import LocalWorker
from baton.kvtransfer.ucx_link import UcxReceiver, UcxSender

PORT_DISTANCE = 100
"""From `tcp`'s port to `ucx`'s, where one is asked for; between them is room for the ranks of a worker."""

MAX_PORT = 65_535


class UcxTransport(TcpTransport):
    scheme: ClassVar[str] = "ucx"
    usual_frame_bytes: ClassVar[int] = 2 << 20
    """Each costs a round over UCX: with `tcp`'s 512 KiB, half as many bytes came through shared memory."""

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self._context = ucp.make_context()
        if worker.port:
            self._port = worker.port + PORT_DISTANCE
        if self._port > MAX_PORT:
            raise SchemeUnavailable(
                f"ucx listens {PORT_DISTANCE} above port {worker.port}: beyond {MAX_PORT}"
            )
        # Nothing comes behind a header: the frames are in the ring.
        self._frame_bytes, self.max_payload_bytes = self.max_payload_bytes, 0

    @property
    def frame_bytes(self) -> int:
        return self._frame_bytes

    def _receiving_end(self, link: StreamLink, channel: ReceiveChannel, unpacker: Unpacker) -> LinkOwner:
        worker = self.worker
        return UcxReceiver(link, channel, self._context, worker.io, self._frame_bytes, worker.stall_timeout_s)

    def _sending_end(
        self, link: StreamLink, channel: SendChannel, packer: Packer, frame_bytes: int
    ) -> LinkOwner:
        return UcxSender(link, channel, self._context, self.worker.io, frame_bytes)

    async def _opened(self, channel: SendChannel, end: LinkOwner) -> SendChannel:
        assert isinstance(end, UcxSender)
        await end.wired()
        return channel

    def close(self) -> None:
        super().close()
        self._context = None
