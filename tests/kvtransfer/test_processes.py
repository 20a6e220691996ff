"""Hand-offs between processes that may stop, or die, at any moment."""

from __future__ import annotations

import gc
import random
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest
from transfer_ends import WAIT_S, End, RemoteEnd, resources, stamp
from transfer_steps import wait_until

from baton.kvtransfer.errors import ChecksumMismatch, PeerLost, TransferAborted, TransferTimeout

MakeEnd = Callable[..., End]
MakeRemote = Callable[..., RemoteEnd]

LONG_S = 60.0
"""A time to live that no test waits for: what ends before was noticed, not timed out."""


def test_blocks_cross_between_processes_both_ways(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    here, there = make_end(process_scheme, owner=1), make_remote(process_scheme, owner=2)
    key, ticket = there.expect([0, 1, 2], [9, 3, 4])
    opened = here.open(ticket)
    opened.session.push([2, 0], [11, 10])
    opened.session.push([1], [12])
    assert opened.outcome.wait().error is None
    assert there.result(key) == ""
    assert [there.read(i) for i in (9, 3, 4)] == [stamp(1, i, 4096) for i in (10, 12, 11)]

    expected = here.expect([0, 1], [30, 20])
    back = there.open(expected.ticket)
    there.push(back, [0, 1], [3, 40])
    assert expected.outcome.wait().error is None
    assert there.result(back) == ""
    assert [here.read(i) for i in (30, 20)] == [stamp(1, 12, 4096), stamp(2, 40, 4096)]


def test_a_sender_that_is_killed_is_noticed_and_leaves_nothing_behind(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    receiver = make_end(process_scheme, owner=1)
    sender = make_remote(process_scheme, owner=2)
    baseline = resources()
    expected = receiver.expect([0, 1], [5, 6], LONG_S)
    sender.push(sender.open(expected.ticket), [0], [0])
    while receiver.agent.stats().blocks_received == 0:
        pass
    sender.kill()
    assert isinstance(expected.outcome.wait().error, PeerLost)
    receiver.agent.fence(expected.transfer_id, "the blocks go back")
    assert receiver.agent.stats().open_receives == 0
    settle(receiver)
    wait_until_resources_are(baseline)


def test_a_receiver_that_is_killed_is_noticed_and_leaves_nothing_behind(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    sender = make_end(process_scheme, owner=1)
    receiver = make_remote(process_scheme, owner=2)
    baseline = resources()
    _, ticket = receiver.expect([0, 1], [5, 6], LONG_S)
    _, complete = receiver.expect([0], [7], LONG_S)
    opened, other = sender.open(ticket), sender.open(complete)
    other.session.push([0], [0])
    assert other.outcome.wait().error is None  # so the connection stands
    receiver.kill()
    assert isinstance(opened.outcome.wait().error, PeerLost)
    settle(sender)
    wait_until_resources_are(baseline)


def test_peers_that_have_gone_leave_nothing_to_the_garbage_collector(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    stays = make_end(process_scheme, owner=1)
    visit(stays, make_remote(process_scheme, owner=2))
    gc.collect()
    gc.disable()
    try:
        after_the_first = transfer_objects()
        for owner in (3, 4):
            visit(stays, make_remote(process_scheme, owner=owner))
        wait_until(lambda: transfer_objects() <= after_the_first)
    finally:
        gc.enable()


def visit(stays: End, guest: RemoteEnd) -> None:
    """A hand-off each way; then the guest is killed."""
    expected = stays.expect([0], [0])
    guest.push(guest.open(expected.ticket), [0], [1])
    assert expected.outcome.wait().error is None
    _, ticket = guest.expect([0], [0])
    opened = stays.open(ticket)
    opened.session.push([0], [1])
    assert opened.outcome.wait().error is None
    guest.kill()


def transfer_objects() -> Counter[str]:
    """By type, those of the package that exist."""
    types = (type(thing) for thing in gc.get_objects())
    return Counter(t.__qualname__ for t in types if str(t.__module__).startswith("baton.kvtransfer"))


def test_a_process_that_lost_its_peer_serves_the_next_one(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    sender = make_end(process_scheme, owner=1)
    for owner in (2, 3):
        receiver = make_remote(process_scheme, owner=owner)
        key, ticket = receiver.expect([0], [5])
        opened = sender.open(ticket)
        opened.session.push([0], [owner])
        assert opened.outcome.wait().error is None
        assert receiver.result(key) == ""
        assert receiver.read(5) == stamp(1, owner, 4096)
        receiver.kill()


def test_what_a_stopped_receiver_reads_too_late_never_lands(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    """The receiver is stopped; the sender pushes, fences, and gives its blocks to another request at once."""
    sender, receiver = make_end(process_scheme, owner=1), make_remote(process_scheme, owner=2)
    key, ticket = receiver.expect([0, 1, 2], [5, 6, 7], LONG_S)
    warm_up, warm_ticket = receiver.expect([0], [8])
    opened, first = sender.open(ticket), sender.open(warm_ticket)
    first.session.push([0], [0])
    assert first.outcome.wait().error is None
    assert receiver.result(warm_up) == ""
    receiver.pause()
    opened.session.push([0, 1, 2], [10, 11, 12])
    opened.session.fence("the client went away")
    assert isinstance(opened.outcome.wait().error, TransferAborted)
    sender.stamp_all(99)
    receiver.resume()
    outcome = receiver.result(key)
    strangers = {stamp(99, block_id, 4096) for block_id in (10, 11, 12)}
    assert strangers.isdisjoint(receiver.read(block_id) for block_id in (5, 6, 7))
    # But over shm all bytes may have left before the fence: then the hand-off was complete, and right.
    assert outcome == "TransferAborted" or process_scheme != "shm"


def test_a_block_that_changes_before_it_was_read_is_a_checksum_mismatch(
    make_end: MakeEnd, make_remote: MakeRemote
) -> None:
    sender, receiver = make_end("shm", owner=1), make_remote("shm", owner=2)
    key, ticket = receiver.expect([0], [5])
    opened = sender.open(ticket)
    receiver.read(0)
    warm_up, warm_ticket = receiver.expect([0], [8])
    sender.open(warm_ticket).session.push([0], [0])
    assert receiver.result(warm_up) == ""
    receiver.pause()
    opened.session.push([0], [10])
    sender.write(10, stamp(99, 10, 4096))
    receiver.resume()
    assert isinstance(opened.outcome.wait().error, ChecksumMismatch)
    assert receiver.result(key) == "ChecksumMismatch"
    assert receiver.read(5) == bytes(4096)


def test_a_receiver_fences_without_the_help_of_a_stopped_sender(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    receiver, sender = make_end(process_scheme, owner=1), make_remote(process_scheme, owner=2)
    expected = receiver.expect([0, 1], [5, 6], LONG_S)
    key = sender.open(expected.ticket)
    sender.push(key, [0], [0])
    while receiver.agent.stats().blocks_received == 0:
        pass
    sender.pause()
    receiver.agent.fence(expected.transfer_id, "the client went away")
    assert isinstance(expected.outcome.wait().error, TransferAborted)
    receiver.stamp_all(3)
    sender.resume()
    sender.push(key, [1], [1])
    assert sender.result(key) == "TransferAborted"
    assert [receiver.read(i) for i in (5, 6)] == [stamp(3, 5, 4096), stamp(3, 6, 4096)]


def test_a_receiver_that_stops_reading_slows_the_sender_down(
    make_end: MakeEnd, make_remote: MakeRemote
) -> None:
    """64 MiB are pushed at a stopped receiver: most never leave the pool, and the ticket's expiry ends it."""
    size, block_bytes = 256, 256 << 10
    sender = make_end("tcp", num_blocks=size, block_bytes=block_bytes)
    receiver = make_remote("tcp", owner=2, num_blocks=size, block_bytes=block_bytes)
    key, ticket = receiver.expect(list(range(size)), list(range(size)), 1.5)
    opened = sender.open(ticket)
    warm_up, warm_ticket = receiver.expect([], [])
    assert sender.open(warm_ticket).outcome.wait().error is None
    assert receiver.result(warm_up) == ""
    receiver.pause()
    opened.session.push(range(size), range(size))
    assert isinstance(opened.outcome.wait().error, TransferTimeout)
    assert sender.agent.stats().blocks_sent < size // 2
    receiver.resume()
    assert receiver.result(key) in {"TransferTimeout", "TransferAborted"}


def test_many_hand_offs_with_fences_on_either_side_keep_every_block_apart(
    make_end: MakeEnd, make_remote: MakeRemote, process_scheme: str
) -> None:
    chance = random.Random(0)
    receiver, sender = make_end(process_scheme, owner=1), make_remote(process_scheme, owner=2)
    for _ in range(100):
        size = chance.randint(1, 16)
        source, target = chance.sample(range(64), size), chance.sample(range(64), size)
        expected = receiver.expect(range(size), target)
        key = sender.open(expected.ticket)
        end_early = chance.choice(["receiver", "sender", "nobody", "nobody"])
        sender.tell("push", key, list(range(size)), source)
        if end_early == "receiver":
            receiver.agent.fence(expected.transfer_id, "chance")
        sender.answer()
        if end_early == "sender":
            sender.fence(key)
        result = expected.outcome.wait()
        if result.error is None:
            assert [receiver.read(i) for i in target] == [stamp(2, i, 4096) for i in source]
        assert sender.result(key) in {"", "TransferAborted", "StaleGeneration"}
    assert receiver.agent.stats().open_receives == 0


@pytest.mark.parametrize(("scheme", "noise_bytes"), [("tcp", 1), ("tcp", 24), ("tcp", 4096), ("ucx", 24)])
def test_noise_on_the_port_disturbs_nobody(make_end: MakeEnd, scheme: str, noise_bytes: int) -> None:
    sender, receiver = make_end(scheme, owner=1), make_end(scheme, owner=2)
    host, _, port = receiver.agent.endpoints[0].removeprefix(f"{scheme}://").partition(":")
    expected = receiver.expect([0, 1], [5, 6])
    opened = sender.open(expected.ticket)
    opened.session.push([0], [0])
    for seed in range(80):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(random.Random(seed).randbytes(noise_bytes))
    opened.session.push([1], [1])
    assert expected.outcome.wait().error is opened.outcome.wait().error is None


def settle(end: End) -> None:
    """Returns once the agent's I/O thread has done all that it had to do so far."""
    assert end.expect([], []).outcome.wait().error is None


def wait_until_resources_are(baseline: list[int]) -> None:
    """At once, but for a process group, which is dissolved on a thread of its own."""
    deadline_s = time.monotonic() + WAIT_S
    while resources() != baseline:
        assert time.monotonic() < deadline_s, f"{resources()} is not {baseline}"
        time.sleep(0.001)
