"""What a bad way does to a hand-off, on `loopback` with faults: an error by name, and never a wrong byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transfer_ends import End, stamp

from baton.kvtransfer.errors import ChecksumMismatch, TransferError, TransferTimeout
from baton.kvtransfer.loopback import Faults, LoopbackTransport
from baton.kvtransfer.messages import Attach, Ended, Message, Push


@pytest.fixture
def sender(make_end: Callable[..., End]) -> End:
    return make_end("loopback", owner=1)


@pytest.fixture
def receiver(make_end: Callable[..., End]) -> End:
    return make_end("loopback", owner=2)


def set_faults(end: End, faults: Faults) -> None:
    """For what is sent to `end` from now on."""
    LoopbackTransport.at(end.agent.endpoints[0]).faults = faults


def is_push(message: Message) -> bool:
    return isinstance(message, Push)


def hand_over(
    sender: End, receiver: End, ttl_s: float = 10.0
) -> tuple[TransferError | None, TransferError | None]:
    """The errors of (sender, receiver)."""
    expected = receiver.expect([0, 1], [5, 6], ttl_s)
    opened = sender.open(expected.ticket)
    opened.session.push([0], [10])
    opened.session.push([1], [11])
    return opened.outcome.wait().error, expected.outcome.wait().error


def test_a_changed_byte_fails_both_sides_and_does_not_land(sender: End, receiver: End) -> None:
    set_faults(receiver, Faults(corrupt=is_push))
    expected = receiver.expect([0], [5])
    opened = sender.open(expected.ticket)
    opened.session.push([0], [10])
    errors = opened.outcome.wait().error, expected.outcome.wait().error
    assert [type(error) for error in errors] == [ChecksumMismatch, ChecksumMismatch]
    assert receiver.read(5) == stamp(2, 5, 4096)
    assert receiver.agent.stats().refused == {"ChecksumMismatch": 1}


def test_what_follows_a_changed_byte_is_refused(sender: End, receiver: End) -> None:
    set_faults(receiver, Faults(corrupt=is_push))
    errors = hand_over(sender, receiver)
    assert [type(error) for error in errors] == [ChecksumMismatch, ChecksumMismatch]
    assert [receiver.read(i) for i in (5, 6)] == [stamp(2, i, 4096) for i in (5, 6)]


def test_duplicated_frames_are_counted_and_change_nothing(sender: End, receiver: End) -> None:
    first = []

    def is_first_push(message: Message) -> bool:
        first.extend([message] if is_push(message) else [])
        return first == [message]

    set_faults(receiver, Faults(duplicate=is_first_push))
    assert hand_over(sender, receiver) == (None, None)
    assert receiver.agent.stats().duplicate_blocks == 1
    assert [receiver.read(i) for i in (5, 6)] == [stamp(1, 10, 4096), stamp(1, 11, 4096)]


def test_a_duplicate_of_the_last_frame_comes_too_late_for_its_generation(sender: End, receiver: End) -> None:
    set_faults(receiver, Faults(duplicate=is_push))
    assert hand_over(sender, receiver) == (None, None)
    assert receiver.agent.stats().refused == {"StaleGeneration": 1}


@pytest.mark.parametrize("kind", [Push, Attach])
def test_lost_messages_end_in_an_error_and_no_half_hand_off(sender: End, receiver: End, kind: type) -> None:
    set_faults(receiver, Faults(drop=lambda message: isinstance(message, kind)))
    for error in hand_over(sender, receiver, ttl_s=0.3):
        assert error is not None
    assert receiver.read(5) == stamp(2, 5, 4096)


def test_a_lost_acknowledgement_times_the_sender_out(sender: End, receiver: End) -> None:
    set_faults(sender, Faults(drop=lambda message: isinstance(message, Ended)))
    sent, received = hand_over(sender, receiver, ttl_s=0.3)
    assert isinstance(sent, TransferTimeout)
    assert received is None


def test_a_slow_way_only_takes_longer(sender: End, receiver: End) -> None:
    set_faults(receiver, Faults(delay_s=0.02))
    assert hand_over(sender, receiver) == (None, None)


def test_frames_that_arrive_after_the_fence_do_not_land(sender: End, receiver: End) -> None:
    set_faults(receiver, Faults(delay_s=0.05))
    expected = receiver.expect([0], [5])
    opened = sender.open(expected.ticket)
    opened.session.push([0], [10])
    receiver.agent.fence(expected.transfer_id, "the client went away")
    again = receiver.expect([0], [5])
    opened.outcome.wait()
    assert receiver.read(5) == stamp(2, 5, 4096)
    assert not again.outcome.is_called
    receiver.agent.fence(again.transfer_id, "enough")
