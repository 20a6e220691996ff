"""What only holds where a process group carries the blocks."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import msgspec
import pytest
import torch.distributed as dist
from transfer_ends import SECRET, End, RemoteEnd, stamp

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.errors import MalformedFrame, PeerLost, SchemeUnavailable
from baton.kvtransfer.messages import Rendezvous
from baton.kvtransfer.pair_group import MAX_KEYS, LinkStore

MakeEnd = Callable[..., End]
MakeRemote = Callable[..., RemoteEnd]

LONG_S = 60.0
STALL_S = 0.3


def hand_over(sender: End, receiver: RemoteEnd, source: int, target: int) -> None:
    key, ticket = receiver.expect([0], [target])
    opened = sender.open(ticket)
    opened.session.push([0], [source])
    assert opened.outcome.wait().error is None
    assert receiver.result(key) == ""
    assert receiver.read(target) == stamp(sender.owner, source, 4096)


def test_a_receiver_that_stands_still_is_given_up_and_reached_again_once_it_moves(
    make_end: MakeEnd, make_remote: MakeRemote
) -> None:
    sender = make_end("gloo", owner=1, stall_timeout_s=STALL_S)
    receiver = make_remote("gloo", owner=2)
    hand_over(sender, receiver, source=3, target=4)
    key, ticket = receiver.expect([0], [5], LONG_S)
    receiver.pause()
    opened = sender.open(ticket)
    opened.session.push([0], [6])
    assert isinstance(opened.outcome.wait().error, PeerLost)
    receiver.resume()
    receiver.fence(key)
    assert receiver.read(5) in (stamp(2, 5, 4096), stamp(1, 6, 4096))
    hand_over(sender, receiver, source=7, target=5)


def test_a_sender_that_stands_still_holds_up_nobody_else(make_end: MakeEnd, make_remote: MakeRemote) -> None:
    receiver = make_end("gloo", owner=1)
    stopped, other = make_remote("gloo", owner=2), make_remote("gloo", owner=3)
    promised = receiver.expect([0, 1], [5, 6], LONG_S)
    stopped.push(stopped.open(promised.ticket), [0], [0])
    stopped.pause()
    expected = receiver.expect([0], [7])
    other.push(other.open(expected.ticket), [0], [9])
    assert expected.outcome.wait().error is None
    assert receiver.read(7) == stamp(3, 9, 4096)
    receiver.agent.fence(promised.transfer_id, "the client went away")
    stopped.resume()


def test_a_peer_that_proves_itself_but_joins_no_group_is_an_error_by_the_deadline(make_end: MakeEnd) -> None:
    """A `tcp` agent's port under a `gloo` name: the greeting names the scheme, so neither waits for a group."""
    sender, receiver = make_end("gloo", owner=1), make_end("tcp", owner=2)
    expected = receiver.expect([0], [1])
    endpoint = receiver.agent.endpoints[0].replace("tcp", "gloo")
    ticket = msgspec.structs.replace(tickets.open_sealed(expected.ticket, SECRET), endpoints=(endpoint,))
    error = sender.open(tickets.seal(ticket, SECRET)).outcome.wait().error
    assert isinstance(error, MalformedFrame)
    assert "'gloo'" in str(error)
    receiver.agent.fence(expected.transfer_id, "enough")


def test_an_address_that_never_answers_is_an_error_by_the_deadline(make_end: MakeEnd) -> None:
    sender, receiver = make_end("gloo", owner=1), make_end("gloo", owner=2)
    expected = receiver.expect([0], [1])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"gloo://127.0.0.1:{silent.getsockname()[1]}"
        ticket = msgspec.structs.replace(tickets.open_sealed(expected.ticket, SECRET), endpoints=(endpoint,))
        opened = sender.open(tickets.seal(ticket, SECRET), time.monotonic() + 0.2)
        error = opened.outcome.wait().error
    assert isinstance(error, PeerLost)
    assert endpoint in str(error)
    receiver.agent.fence(expected.transfer_id, "enough")


def test_any_number_of_pairs_share_a_process_and_none_is_the_default_group(make_end: MakeEnd) -> None:
    ends = [make_end("gloo", owner=owner, num_blocks=8) for owner in range(4)]
    for sender in ends:
        for receiver in ends:
            expected = receiver.expect([0], [7])
            opened = sender.open(expected.ticket)
            opened.session.push([0], [sender.owner])
            assert expected.outcome.wait().error is opened.outcome.wait().error is None
            assert receiver.read(7) == stamp(sender.owner, sender.owner, 4096)
    assert not dist.is_initialized()


def test_blocks_do_not_travel_unchecked() -> None:
    with pytest.raises(SchemeUnavailable, match="does not go unchecked"):
        End("gloo", checksum=False)


def test_ipv6_works(make_end: MakeEnd) -> None:
    sender, receiver = make_end("gloo", host="::1"), make_end("gloo", owner=2, host="::1")
    expected = receiver.expect([0], [1])
    opened = sender.open(expected.ticket)
    opened.session.push([0], [2])
    assert expected.outcome.wait().error is opened.outcome.wait().error is None
    assert receiver.read(1) == sender.read(2)


class TestMeetingPoint:
    def test_what_one_side_says_the_other_hears(self) -> None:
        said: list[Rendezvous] = []
        near, far = LinkStore(said.append, LONG_S), LinkStore(said.append, LONG_S)
        near.set("address", b"\x00here")
        far.hear(said[0])
        assert near.get("address") == far.get("address") == b"\x00here"
        assert far.check(["address"])
        assert not far.check(["address", "other"])

    def test_a_peer_that_says_nothing_is_lost_in_time(self) -> None:
        with pytest.raises(PeerLost, match=r"did not join .* within 0.01 s"):
            LinkStore(lambda _: None, 0.01).get("address")

    def test_a_peer_that_says_too_much_is_refused(self) -> None:
        store = LinkStore(lambda _: None, LONG_S)
        for number in range(MAX_KEYS):
            store.hear(Rendezvous(key=str(number), value=b""))
        with pytest.raises(MalformedFrame, match=f"more than {MAX_KEYS}"):
            store.hear(Rendezvous(key="one more", value=b""))
