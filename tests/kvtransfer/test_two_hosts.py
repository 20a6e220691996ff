"""Hand-offs between two hosts: processes with networks of their own, joined by a cable that can be pulled."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import msgspec
import pytest
from transfer_ends import SECRET, RemoteEnd

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.transport import PREFLIGHT_S

MakeRemote = Callable[..., RemoteEnd]

NEAR, FAR, NOBODY = "10.77.0.1", "10.77.0.2", "10.77.0.99"
LONG_S = 60.0
STALL_S = 1.0


class Cable:
    """A veth(4) pair whose ends lie in the networks of two processes; it goes with them."""

    def __init__(self) -> None:
        self._near_pid = 0

    def plug_near(self, pid: int) -> None:
        self._near_pid = pid
        run_in(pid, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        run_in(pid, "ip", "link", "set", "far", "up")  # or the near end would have no carrier yet
        bring_up(pid, "near", NEAR)

    def plug_far(self, pid: int) -> None:
        run_in(self._near_pid, "ip", "link", "set", "far", "netns", str(pid))
        bring_up(pid, "far", FAR)

    def pull(self) -> None:
        run_in(self._near_pid, "ip", "link", "set", "near", "down")


def run_in(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", *command], check=True)


def lead_to(ticket: bytes, endpoint: str) -> bytes:
    """The same ticket with another endpoint."""
    promise = tickets.open_sealed(ticket, SECRET)
    return tickets.seal(msgspec.structs.replace(promise, endpoints=(endpoint,)), SECRET)


def bring_up(pid: int, interface: str, address: str) -> None:
    run_in(pid, "ip", "link", "set", "lo", "up")
    run_in(pid, "ip", "address", "add", f"{address}/24", "dev", interface)
    run_in(pid, "ip", "link", "set", interface, "up")


@pytest.fixture(scope="module")
def networks() -> None:
    """Skips where networks cannot be made."""
    try:
        subprocess.run(
            ["unshare", "-n", "-m", "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no networks of their own here: {error}")


@pytest.fixture(params=("tcp", "ucx"))
def far_scheme(networks: None, request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def hosts(make_remote: MakeRemote, far_scheme: str) -> tuple[RemoteEnd, RemoteEnd, Cable]:
    """(sender, receiver, what joins them); both would share memory if they could."""
    cable = Cable()
    options = {"num_blocks": 512, "stall_timeout_s": STALL_S}
    sender = make_remote("shm", far_scheme, owner=1, host=NEAR, wire_up=cable.plug_near, **options)
    receiver = make_remote("shm", far_scheme, owner=2, host=FAR, wire_up=cable.plug_far, **options)
    return sender, receiver, cable


def test_blocks_cross_between_two_hosts_and_not_through_shared_memory(
    hosts: tuple[RemoteEnd, RemoteEnd, Cable], far_scheme: str
) -> None:
    here, there, _ = hosts
    for sender, receiver in ((here, there), (there, here)):
        positions, source, target = list(range(200)), list(range(100, 300)), list(range(499, 299, -1))
        key, ticket = receiver.expect(positions, target)
        opened = sender.open(ticket)
        sender.push(opened, positions, source)
        assert sender.result(opened) == receiver.result(key) == ""
        assert receiver.read(499) == sender.read(100)
        assert receiver.read(300) == sender.read(299)
        assert receiver.received(far_scheme) == 200
        assert receiver.received("shm") == 0


def test_an_address_that_cannot_be_reached_is_an_error_within_5_s(
    networks: None, make_remote: MakeRemote
) -> None:
    cable = Cable()
    sender = make_remote("ucx", "tcp", owner=1, host=NEAR, wire_up=cable.plug_near)
    receivers = [make_remote(scheme, owner=2) for scheme in ("tcp", "ucx")]
    tickets_of_both = [receiver.expect([0], [0], LONG_S) for receiver in receivers]
    nowhere = [f"{scheme}://{NOBODY}:9" for scheme in ("tcp", "ucx")]
    started_s = time.monotonic()
    opened = [
        sender.open(lead_to(ticket, endpoint))
        for (_, ticket), endpoint in zip(tickets_of_both, nowhere, strict=True)
    ]
    for key, endpoint in zip(opened, nowhere, strict=True):
        assert sender.result(key) == "PeerLost"
        assert endpoint in sender.error(key)
    assert time.monotonic() - started_s < 2 * PREFLIGHT_S
    assert sender.open_transfers() == 0
    for receiver, (key, _) in zip(receivers, tickets_of_both, strict=True):
        receiver.fence(key)


def test_a_cable_pulled_in_the_middle_ends_the_transfer_on_both_sides(
    hosts: tuple[RemoteEnd, RemoteEnd, Cable], far_scheme: str
) -> None:
    sender, receiver, cable = hosts
    positions = list(range(500))
    key, ticket = receiver.expect(positions, positions, LONG_S)
    opened = sender.open(ticket)
    sender.push(opened, [0], [0])
    while receiver.received(far_scheme) == 0:
        pass
    cable.pull()
    sender.push(opened, positions[1:], positions[1:])
    assert sender.result(opened) == receiver.result(key) == "PeerLost"
    assert sender.open_transfers() == receiver.open_transfers() == 0
