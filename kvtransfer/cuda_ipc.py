"""`cuda-ipc://`: between two processes of one host, from GPU memory to GPU memory.

As `shm`, with a CUDA IPC handle of the sender's pool in place of its memory file: it comes with the sender's proof,
covered by the MAC; the receiver opens it once and copies the lent blocks into its own, under the same read leases
and the inbox's fence. The sender's pool is read only, by convention: CUDA maps it writable.

What is verified: that the lease still stood after the copy was done, so that every byte was the transfer's own,
and, of what then lies in the receiver's blocks, the digests of `device_blocks`, which both sides compute on their
GPU. The sender's GPU has to be visible to the receiver's process, by whatever number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import torch

from baton.kvtransfer import cuda_driver
from baton.kvtransfer.block_array import BlockArray
from baton.kvtransfer.carrier import Packer, Unpacker
from baton.kvtransfer.device_blocks import DeviceBlockArray
from baton.kvtransfer.device_staging import frame_blocks
from baton.kvtransfer.errors import MalformedFrame, SchemeUnavailable
from baton.kvtransfer.mapping import BorrowingUnpacker, require_shape
from baton.kvtransfer.messages import Proof
from baton.kvtransfer.shm import SameHostTransport
from baton.kvtransfer.transport import LocalWorker


class PoolHandle(msgspec.Struct, frozen=True, kw_only=True):
    """Where a pool lies. device: UUID of its GPU. handle: of the allocation; offset_bytes: of the pool in it;
    allocated_bytes: its size. process: id of the one that it belongs to."""

    device: str
    handle: bytes
    offset_bytes: int
    allocated_bytes: int
    process: int


class CudaIpcTransport(SameHostTransport):
    scheme: ClassVar[str] = "cuda-ipc"

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self.max_payload_bytes = 0
        self._handle = msgspec.msgpack.encode(_share(require_cuda(worker.blocks)))

    def _packer(self) -> Packer:
        packer = super()._packer()
        packer.max_blocks = frame_blocks(self.worker.blocks.block_bytes)
        return packer

    def _unpacker(self, proof: Proof, fds: Sequence[int]) -> Unpacker:
        if len(fds) != 1:
            raise MalformedFrame(f"{len(fds)} descriptors came with the proof, not 1")
        return CudaIpcUnpacker(self.worker.blocks, proof, fds[0])

    def _offered_fds(self) -> Sequence[int]:
        return (self.leases.fd,)

    def _offered_handle(self) -> bytes:
        return self._handle


class CudaIpcUnpacker(BorrowingUnpacker):
    """One peer's pool, opened once."""

    def __init__(self, blocks: BlockArray, proof: Proof, leases_fd: int) -> None:
        """proof: the peer's word on its pool, believed only as far as its allocation reaches.

        Raises MalformedFrame for a handle or a shape that makes no sense, SchemeUnavailable where the memory
        cannot be opened. The caller keeps the descriptor.
        """
        require_shape(proof)
        at = read_handle(proof)
        self._memory = cuda_driver.OpenedMemory(
            at.handle, at.offset_bytes, proof.num_blocks * proof.block_bytes, _visible(at.device)
        )
        try:
            pool = torch.as_tensor(self._memory).view(proof.num_blocks, proof.block_bytes)
            super().__init__(blocks, DeviceBlockArray(pool), leases_fd)
        except BaseException:
            self._memory.close()
            raise

    def close(self) -> None:
        super().close()
        self._memory.close()


def require_cuda(blocks: BlockArray) -> DeviceBlockArray:
    """Raises SchemeUnavailable for a pool that is not on a CUDA device."""
    if isinstance(blocks, DeviceBlockArray) and blocks.device.type == "cuda":
        return blocks
    where = blocks.device if isinstance(blocks, DeviceBlockArray) else "host memory"
    if not torch.cuda.is_available():
        raise SchemeUnavailable(f"the pool lies in {where}, and no CUDA device is available here")
    raise SchemeUnavailable(f"the pool lies in {where}, not on a CUDA device")


def read_handle(proof: Proof) -> PoolHandle:
    """Raises MalformedFrame, and SchemeUnavailable for a pool of this very process."""
    try:
        at = msgspec.msgpack.decode(proof.handle, type=PoolHandle)
    except msgspec.DecodeError as error:
        raise MalformedFrame(f"a pool's handle that cannot be decoded: {error}") from error
    if len(at.handle) != cuda_driver.HANDLE_BYTES:
        raise MalformedFrame(f"a CUDA handle of {len(at.handle)} bytes, not {cuda_driver.HANDLE_BYTES}")
    size_bytes = proof.num_blocks * proof.block_bytes
    if at.offset_bytes < 0 or at.offset_bytes + size_bytes > at.allocated_bytes:
        raise MalformedFrame(
            f"a pool of {size_bytes} bytes at {at.offset_bytes} in an allocation of {at.allocated_bytes}"
        )
    if at.process == os.getpid():
        raise SchemeUnavailable("CUDA opens no handle in the process that it comes from")
    return at


def _share(blocks: DeviceBlockArray) -> PoolHandle:
    handle, offset_bytes, allocated_bytes = cuda_driver.share(blocks.memory)
    return PoolHandle(
        device=_uuid(blocks.device),
        handle=handle,
        offset_bytes=offset_bytes,
        allocated_bytes=allocated_bytes,
        process=os.getpid(),
    )


def _uuid(device: torch.device | int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _visible(uuid: str) -> torch.device:
    for index in range(torch.cuda.device_count()):
        if _uuid(index) == uuid:
            return torch.device("cuda", index)
    raise SchemeUnavailable(f"the peer's GPU {uuid} is not visible to this process")
