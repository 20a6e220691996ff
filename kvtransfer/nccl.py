"""`gloo://` and `nccl://`: blocks travel through torch.distributed, point to point; `gloo` between pools in host
memory, `nccl` between pools on GPUs.

Every word (proof of the secret, epochs, tickets taken up, headers with checksums, acknowledgements) goes over
the same signed stream as with `tcp`; only the payloads take the process group, which is the pair's own
(`pair_group`) and is made anew with each connection. A peer that dies, or that moves no payload for the stall
timeout, breaks group and connection with PeerLost; the next transfer makes new ones.

What remains of risk: gloo and NCCL listen on ports of their own and ask nobody for a secret. Here they are told
apart from others only by what travels over the signed stream, and gloo binds to the worker's own `host`. Whoever
can connect there first, or reads the wire, could disturb a pair or read its blocks, never write: digests come
over the signed stream, so that bytes which are not the sender's are refused, which is why these schemes do not
go unchecked. Keep them inside a network that you trust.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch.distributed as dist

from baton.kvtransfer.carrier import Packer, Unpacker
from baton.kvtransfer.courier import Courier
from baton.kvtransfer.cuda_ipc import require_cuda
from baton.kvtransfer.device_staging import DeviceStagingPacker, DeviceStagingUnpacker
from baton.kvtransfer.errors import SchemeUnavailable
from baton.kvtransfer.link import LinkOwner
from baton.kvtransfer.messages import Proof
from baton.kvtransfer.pair_group import GlooGroup, LinkStore, NcclGroup, PairGroup
from baton.kvtransfer.receiving import ReceiveChannel
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.staged_ends import StagedEnd, StagedReceiver, StagedSender
from baton.kvtransfer.staging import HostStagingPacker, HostStagingUnpacker, StagingPacker, StagingUnpacker
from baton.kvtransfer.stream_link import StreamLink
from baton.kvtransfer.tcp import TcpTransport
from baton.kvtransfer.transport import LocalWorker

JOIN_S = 6.0
"""Longest that `close` waits for a courier: one that forms a group gives up within the preflight's 5 s."""


class GroupTransport(TcpTransport, ABC):
    """What the two schemes share."""

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        if not worker.checksum:
            raise SchemeUnavailable(f"{self.scheme} does not go unchecked: its ports know no secret")
        self.max_payload_bytes = 0  # within a frame
        self._couriers: list[Courier] = []

    @abstractmethod
    def _group(self, store: LinkStore, rank: int) -> PairGroup: ...

    def _sending_end(
        self, link: StreamLink, channel: SendChannel, packer: Packer, frame_bytes: int
    ) -> LinkOwner:
        assert isinstance(packer, StagingPacker)
        return self._tracked(StagedSender(self.worker.io, link, channel, self._group, packer))

    def _receiving_end(self, link: StreamLink, channel: ReceiveChannel, unpacker: Unpacker) -> LinkOwner:
        assert isinstance(unpacker, StagingUnpacker)
        stall_s = self.worker.stall_timeout_s
        return self._tracked(StagedReceiver(self.worker.io, link, channel, self._group, unpacker, stall_s))

    def _tracked(self, end: StagedEnd) -> StagedEnd:
        self._couriers = [courier for courier in self._couriers if courier.is_running]
        self._couriers.append(end.courier)
        return end

    async def _opened(self, channel: SendChannel, end: LinkOwner) -> SendChannel:
        assert isinstance(end, StagedSender)
        await end.met()
        return channel

    def close(self) -> None:
        super().close()
        for courier in self._couriers:
            courier.join(JOIN_S)


class GlooTransport(GroupTransport):
    scheme: ClassVar[str] = "gloo"

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self._device: dist.ProcessGroupGloo.Device | None = None

    def _bind(self) -> tuple[socket.socket, str]:
        sock, endpoint = super()._bind()
        ip = sock.getsockname()[0]
        try:
            self._device = dist.ProcessGroupGloo.create_device(hostname=ip)
        except RuntimeError as error:
            sock.close()
            raise SchemeUnavailable(f"gloo cannot listen on {ip}: {error}") from error
        return sock, endpoint

    def _group(self, store: LinkStore, rank: int) -> PairGroup:
        assert self._device is not None, "a link before `listen`"
        return GlooGroup(store, rank, self.worker.stall_timeout_s, self._device)

    def _packer(self) -> Packer:
        return HostStagingPacker(self.worker.blocks, self.worker.checksum)

    def _unpacker(self, proof: Proof, fds: Sequence[int]) -> Unpacker:
        return HostStagingUnpacker(self.worker.blocks)

    def close(self) -> None:
        super().close()
        self._device = None


class NcclTransport(GroupTransport):
    scheme: ClassVar[str] = "nccl"

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self._blocks = require_cuda(worker.blocks)
        if not dist.is_nccl_available():
            raise SchemeUnavailable("this build of torch has no NCCL")

    def _group(self, store: LinkStore, rank: int) -> PairGroup:
        return NcclGroup(store, rank, self.worker.stall_timeout_s, self._blocks.device)

    def _packer(self) -> Packer:
        return DeviceStagingPacker(self._blocks)

    def _unpacker(self, proof: Proof, fds: Sequence[int]) -> Unpacker:
        return DeviceStagingUnpacker(self._blocks)
