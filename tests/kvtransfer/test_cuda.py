"""Hand-offs between GPUs, where there are any, and what is said where there are none."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import pytest
import torch
from transfer_ends import End, RemoteEnd, stamp

from baton.kvtransfer.cuda_driver import HANDLE_BYTES
from baton.kvtransfer.cuda_ipc import PoolHandle, read_handle
from baton.kvtransfer.errors import (
    LayoutMismatch,
    MalformedFrame,
    PeerLost,
    SchemeUnavailable,
    TransferAborted,
)
from baton.kvtransfer.messages import Proof

MakeEnd = Callable[..., End]
MakeRemote = Callable[..., RemoteEnd]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA devices: NCCL pairs no device with itself"
)
LONG_S = 60.0


@pytest.fixture(autouse=True, scope="module")
def cuda_is_up() -> None:
    """Descriptors and threads that CUDA keeps for the life of a process are none of a test's."""
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda").cpu()


class TestWithoutDevice:
    @pytest.mark.parametrize("scheme", ["cuda-ipc", "nccl"])
    def test_a_pool_in_host_memory_is_refused_with_the_reason(self, scheme: str) -> None:
        with pytest.raises(SchemeUnavailable, match=f"{scheme}: the pool lies in host memory"):
            End(scheme)

    def test_the_default_leaves_them_out_and_says_why(self, make_end: MakeEnd) -> None:
        end = make_end("cuda-ipc", "shm", "nccl", "tcp")
        assert [endpoint.partition(":")[0] for endpoint in end.agent.endpoints] == ["shm", "tcp"]
        assert set(end.agent.unavailable) == {"cuda-ipc", "nccl"}


class TestHandle:
    GOOD = PoolHandle(
        device="GPU-0", handle=bytes(HANDLE_BYTES), offset_bytes=512, allocated_bytes=4608, process=1
    )

    def proof(self, handle: bytes) -> Proof:
        return Proof(mac=b"", num_blocks=2, block_bytes=2048, handle=handle)

    def read(self, **changes: object) -> PoolHandle:
        return read_handle(self.proof(msgspec.msgpack.encode(msgspec.structs.replace(self.GOOD, **changes))))

    def test_one_that_fits_its_allocation_is_taken(self) -> None:
        assert self.read() == self.GOOD

    def test_noise_is_refused(self) -> None:
        with pytest.raises(MalformedFrame, match="cannot be decoded"):
            read_handle(self.proof(b"\xc1"))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"handle": b"short"}, "5 bytes, not 64"),
            ({"offset_bytes": 513}, "4096 bytes at 513 in an allocation of 4608"),
            ({"offset_bytes": -1}, "4096 bytes at -1"),
        ],
    )
    def test_one_that_makes_no_sense_is_refused(self, changes: dict[str, object], reason: str) -> None:
        with pytest.raises(MalformedFrame, match=reason):
            self.read(**changes)

    def test_a_pool_of_the_same_process_is_refused(self) -> None:
        with pytest.raises(SchemeUnavailable, match="in the process that it comes from"):
            self.read(process=os.getpid())


@pytest.fixture(
    params=[
        pytest.param(("cuda-ipc", "cuda:0"), marks=needs_gpu, id="cuda-ipc"),
        pytest.param(("tcp", "cuda:0"), marks=needs_gpu, id="tcp"),
        pytest.param(("ucx", "cuda:0"), marks=needs_gpu, id="ucx"),
        pytest.param(("gloo", "cuda:0"), marks=needs_gpu, id="gloo"),
        pytest.param(("nccl", "cuda:1"), marks=needs_two_gpus, id="nccl"),
    ]
)
def device_pair(
    request: pytest.FixtureRequest, make_end: MakeEnd, make_remote: MakeRemote
) -> tuple[End, RemoteEnd]:
    """(here, in another process), each with a pool on a device."""
    scheme, device = request.param
    return make_end(scheme, owner=1, device="cuda:0"), make_remote(scheme, owner=2, device=device)


def test_blocks_cross_between_devices_both_ways(device_pair: tuple[End, RemoteEnd]) -> None:
    here, there = device_pair
    key, ticket = there.expect([0, 1, 2], [9, 3, 4])
    opened = here.open(ticket)
    opened.session.push([2, 0, 1], [11, 10, 12])
    assert opened.outcome.wait().error is None
    assert there.result(key) == ""
    assert [there.read(i) for i in (9, 3, 4, 5)] == [
        *(stamp(1, i, 4096) for i in (10, 12, 11)),
        stamp(2, 5, 4096),
    ]
    expected = here.expect([0, 1], [30, 20])
    back = there.open(expected.ticket)
    there.push(back, [0, 1], [3, 40])
    assert expected.outcome.wait().error is None
    assert [here.read(i) for i in (30, 20)] == [stamp(1, 12, 4096), stamp(2, 40, 4096)]


def test_what_a_stopped_receiver_reads_too_late_never_lands(device_pair: tuple[End, RemoteEnd]) -> None:
    sender, receiver = device_pair
    key, ticket = receiver.expect([0, 1, 2], [5, 6, 7], LONG_S)
    receiver.pause()
    opened = sender.open(ticket)
    opened.session.push([0, 1, 2], [10, 11, 12])
    opened.session.fence("the client went away")
    assert isinstance(opened.outcome.wait().error, TransferAborted)
    sender.stamp_all(99)
    receiver.resume()
    receiver.fence(key)
    strangers = {stamp(99, block_id, 4096) for block_id in (10, 11, 12)}
    assert strangers.isdisjoint(receiver.read(block_id) for block_id in (5, 6, 7))


def test_a_killed_peer_is_lost(device_pair: tuple[End, RemoteEnd]) -> None:
    sender, receiver = device_pair
    _, ticket = receiver.expect([0, 1], [5, 6], LONG_S)
    opened = sender.open(ticket)
    opened.session.push([0], [0])
    receiver.kill()
    assert isinstance(opened.outcome.wait().error, PeerLost)


@needs_gpu
def test_pools_that_lie_differently_are_refused_by_name(make_end: MakeEnd) -> None:
    here = make_end("tcp", device="cuda:0")
    other = msgspec.structs.replace(here.agent.layout, block_size=8)
    there = make_end("tcp", block_bytes=2048, layout=other)
    expected = there.expect([0], [0])
    with pytest.raises(LayoutMismatch, match="not converted"):
        here.open(expected.ticket)
    there.agent.fence(expected.transfer_id, "enough")
