"""Which way a pair takes, and what happens where a way is closed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec
import pytest
import torch
from transfer_ends import LAYOUT, SECRET, End

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import KVMemory
from baton.kvtransfer.errors import PeerLost, SchemeUnavailable, UnknownScheme
from baton.kvtransfer.schemes import known_schemes

MakeEnd = Callable[..., End]


def with_endpoints(ticket: bytes, *endpoints: str) -> bytes:
    return tickets.seal(
        msgspec.structs.replace(tickets.open_sealed(ticket, SECRET), endpoints=endpoints), SECRET
    )


def hand_over(sender: End, receiver: End, endpoints: tuple[str, ...] = ()) -> None:
    expected = receiver.expect([0], [1])
    opened = sender.open(with_endpoints(expected.ticket, *(endpoints or receiver.agent.endpoints)))
    opened.session.push([0], [2])
    assert expected.outcome.wait().error is opened.outcome.wait().error is None
    assert receiver.read(1) == sender.read(2)


def test_a_pair_on_one_host_takes_shared_memory(make_end: MakeEnd) -> None:
    sender, receiver = make_end("shm", "tcp"), make_end("shm", "tcp", owner=2)
    assert [endpoint.partition(":")[0] for endpoint in receiver.agent.endpoints] == ["shm", "tcp"]
    hand_over(sender, receiver)
    assert receiver.agent.stats().by_scheme["shm"].blocks_received == 1


def test_a_pool_that_cannot_be_shared_goes_over_tcp(make_end: MakeEnd) -> None:
    sender, receiver = make_end("shm", "tcp", shareable=False), make_end("shm", "tcp", owner=2)
    assert [endpoint.partition(":")[0] for endpoint in sender.agent.endpoints] == ["tcp"]
    assert "no memory file" in sender.agent.unavailable["shm"]
    hand_over(sender, receiver)
    hand_over(receiver, sender)


def test_a_peer_on_another_host_is_reached_by_the_next_endpoint(make_end: MakeEnd) -> None:
    sender, receiver = make_end("shm", "tcp"), make_end("tcp", owner=2)
    hand_over(sender, receiver, ("shm://no-such-name", "ucx://not-known-here", *receiver.agent.endpoints))


def test_when_no_endpoint_answers_the_error_names_each(make_end: MakeEnd) -> None:
    sender, receiver = make_end("shm", "tcp"), make_end("tcp", owner=2)
    expected = receiver.expect([0], [0])
    ticket = with_endpoints(expected.ticket, "shm://nobody", "tcp://127.0.0.1:1", "tcp://not-an-address:1")
    error = sender.open(ticket).outcome.wait().error
    assert isinstance(error, PeerLost)
    for part in (
        "shm://nobody: Connection refused",
        "tcp://127.0.0.1:1: Connection refused",
        "no tcp endpoint",
    ):
        assert part in str(error)
    receiver.agent.fence(expected.transfer_id, "enough")


def test_an_address_that_never_answers_is_an_error_by_the_deadline(make_end: MakeEnd) -> None:
    sender, receiver = make_end("tcp"), make_end("tcp", owner=2)
    expected = receiver.expect([0], [0])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        opened = sender.open(with_endpoints(expected.ticket, endpoint), time.monotonic() + 0.2)
        opened.session.push([0], [0])
        error = opened.outcome.wait().error
    assert isinstance(error, PeerLost)
    assert endpoint in str(error)
    receiver.agent.fence(expected.transfer_id, "enough")


def test_an_agent_that_closes_while_it_connects_leaves_nothing_behind(make_end: MakeEnd) -> None:
    sender, receiver = make_end("tcp"), make_end("tcp", owner=2)
    expected = receiver.expect([0], [0])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        opened = sender.open(with_endpoints(expected.ticket, endpoint))
        sender.agent.close()
        assert opened.outcome.wait().error is not None
    receiver.agent.fence(expected.transfer_id, "enough")


def test_an_endpoint_that_another_start_has_taken_over_is_refused(make_end: MakeEnd) -> None:
    sender, former = make_end("tcp"), make_end("tcp", owner=2)
    expected = former.expect([0], [0])
    successor = make_end("tcp", owner=3)
    error = sender.open(with_endpoints(expected.ticket, *successor.agent.endpoints)).outcome.wait().error
    assert isinstance(error, PeerLost)
    assert "restarted" in str(error)
    former.agent.fence(expected.transfer_id, "enough")


def test_an_unknown_scheme_lists_the_choices() -> None:
    with pytest.raises(UnknownScheme, match=r"'rdma'.*loopback, shm, ucx, tcp, gloo, nccl, cuda-ipc"):
        End("shm", "rdma")
    assert known_schemes() == ("loopback", "shm", "ucx", "tcp", "gloo", "nccl", "cuda-ipc")


def test_a_forced_scheme_that_cannot_work_says_why() -> None:
    with pytest.raises(SchemeUnavailable, match="no memory file"):
        End("shm", shareable=False)
    with pytest.raises(SchemeUnavailable, match="no scheme"):
        End()


def test_a_memory_file_that_could_shrink_is_not_shared() -> None:
    fd = os.memfd_create("unsealable")
    try:
        os.ftruncate(fd, 4096)
        with pytest.raises(SchemeUnavailable, match="sealed"):
            TransferAgent(KVMemory(torch.zeros(1, 4096, dtype=torch.uint8), fd), LAYOUT, SECRET, ("shm",))
    finally:
        os.close(fd)


def test_a_memory_file_that_is_too_small_is_not_shared() -> None:
    fd = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(SchemeUnavailable, match="0 bytes, fewer than its 4096"):
            TransferAgent(KVMemory(torch.zeros(1, 4096, dtype=torch.uint8), fd), LAYOUT, SECRET, ("shm",))
    finally:
        os.close(fd)


def test_a_port_in_use_is_named(make_end: MakeEnd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SchemeUnavailable, match=f"port {port}: Address already in use"):
            End("tcp", port=port)


@pytest.mark.parametrize(
    ("host", "reason"), [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("192.0.2.1", "192.0.2.1")]
)
def test_a_host_that_cannot_be_listened_on_or_reached_is_named(host: str, reason: str) -> None:
    with pytest.raises(SchemeUnavailable, match=reason):
        End("tcp", host=host)


def test_ipv6_works(make_end: MakeEnd) -> None:
    sender, receiver = make_end("tcp"), make_end("tcp", owner=2, host="::1")
    assert receiver.agent.endpoints[0].startswith("tcp://[::1]:")
    hand_over(sender, receiver)


def test_the_package_needs_neither_services_nor_engine() -> None:
    code = (
        "import sys, baton.kvtransfer.agent\n"
        "from baton.kvtransfer import loopback, shm, tcp\n"
        "foreign = {'grpc', 'fastapi', 'zmq', 'ucxx'}\n"
        "foreign |= {'baton.engine', 'baton.errors', 'baton.wire', 'baton.router'}\n"
        "sys.exit(', '.join(foreign & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
