"""What every transport has to do, whatever it is made of: how blocks arrive, and how a transfer ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_ends import WAIT_S, stamp
from transfer_steps import MakeEnd, Pair, assert_untouched, hand_over, wait_until

from baton.kvtransfer.base import TransferState
from baton.kvtransfer.errors import StaleGeneration, TransferAborted, TransferTimeout


class TestBytes:
    @pytest.mark.parametrize("block_bytes", [1, 100, 4096, 300_000])
    def test_every_byte_lands_where_it_belongs_and_nowhere_else(
        self, make_end: MakeEnd, scheme: str, block_bytes: int
    ) -> None:
        sender = make_end(scheme, owner=1, num_blocks=24, block_bytes=block_bytes)
        receiver = make_end(scheme, owner=2, num_blocks=24, block_bytes=block_bytes)

        @settings(max_examples=15, deadline=None)
        @given(st.data())
        def hand_over_anyhow(data: st.DataObject) -> None:
            receiver.stamp_all(2)
            blocks = st.permutations(range(24))
            size = data.draw(st.integers(1, 24), "blocks")
            source, target = data.draw(blocks, "source")[:size], data.draw(blocks, "target")[:size]
            positions = data.draw(st.permutations(range(7, 7 + 3 * size)), "positions")[:size]
            order = data.draw(st.permutations(range(size)), "order of pushing")
            cuts = sorted(data.draw(st.sets(st.integers(1, size)), "ends of pushes") | {0, size})
            expected = receiver.expect(positions, target)
            opened = sender.open(expected.ticket)
            for start, stop in itertools.pairwise(cuts):
                pushed = order[start:stop]
                opened.session.push([positions[i] for i in pushed], [source[i] for i in pushed])
            assert expected.outcome.wait().error is None
            assert opened.outcome.wait().error is None
            for source_id, target_id in zip(source, target, strict=True):
                assert receiver.read(target_id) == sender.read(source_id)
            assert_untouched(receiver, *target)

        hand_over_anyhow()

    @pytest.mark.parametrize(("num_blocks", "block_bytes"), [(3000, 4096), (70_000, 8)])
    def test_a_push_of_many_frames_arrives_whole(
        self, make_end: MakeEnd, scheme: str, num_blocks: int, block_bytes: int
    ) -> None:
        shape = {"num_blocks": num_blocks, "block_bytes": block_bytes, "is_stamped": False}
        sender, receiver = make_end(scheme, owner=1, **shape), make_end(scheme, owner=2, **shape)
        sender.memory.blocks.random_(0, 256)
        positions = np.arange(num_blocks)
        source, target = np.random.default_rng(0).permuted(np.tile(positions, (2, 1)), axis=1)
        expected = receiver.expect(positions, target)
        opened = sender.open(expected.ticket)
        opened.session.push(positions, source)
        assert expected.outcome.wait().bytes == opened.outcome.wait().bytes == num_blocks * block_bytes
        assert (receiver.memory.blocks[target] == sender.memory.blocks[source]).all()

    def test_only_wanted_positions_cross(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([4, 5], [10, 11])
        opened = sender.open(expected.ticket)
        opened.session.push(range(6), range(20, 26))
        assert expected.outcome.wait().blocks == opened.outcome.wait().blocks == 2
        assert sender.agent.stats().blocks_sent == receiver.agent.stats().blocks_received == 2
        assert receiver.read(10) == sender.read(24)
        assert_untouched(receiver, 10, 11)

    def test_a_position_pushed_twice_crosses_once(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0, 1], [10, 11])
        opened = sender.open(expected.ticket)
        opened.session.push([0], [20])
        opened.session.push([0], [21])
        opened.session.push([0, 1], [22, 23])
        assert opened.outcome.wait().blocks == 2
        assert receiver.read(10) == sender.read(20)
        assert receiver.agent.stats().duplicate_blocks == 0

    def test_a_request_that_lacks_nothing_is_done_at_once_on_both_sides(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([], [])
        opened = sender.open(expected.ticket)
        assert expected.outcome.wait().state is opened.outcome.wait().state is TransferState.DONE

    def test_an_agent_hands_over_to_itself(self, make_end: MakeEnd, scheme: str) -> None:
        end = make_end(scheme)
        expected, opened = hand_over((end, end), [0, 1], [2, 3], [9, 8])
        assert expected.outcome.wait().error is opened.outcome.wait().error is None
        assert end.read(9) == end.read(2)


class TestResult:
    def test_both_sides_tell_the_same_story(self, pair: Pair) -> None:
        expected, opened = hand_over(pair, [0, 1, 2], [5, 6, 7], [1, 2, 3])
        for result in (expected.outcome.wait(), opened.outcome.wait()):
            assert result.transfer_id == expected.transfer_id
            assert (result.state, result.blocks, result.bytes) == (TransferState.DONE, 3, 3 * 4096)
            times = [result.opened_at_s, result.first_byte_at_s, result.last_byte_at_s, result.done_at_s]
            assert times == sorted(times)
            assert times[0] > 0.0

    def test_the_scheme_counts_what_it_moved(self, pair: Pair, scheme: str) -> None:
        expected, opened = hand_over(pair, [0, 1], [5, 6], [1, 2])
        expected.outcome.wait(), opened.outcome.wait()
        sent, received = (end.agent.stats().by_scheme[scheme] for end in pair)
        assert (sent.blocks_sent, sent.bytes_sent, sent.blocks_received) == (2, 8192, 0)
        assert (received.blocks_received, received.bytes_received, received.blocks_sent) == (2, 8192, 0)


class TestFence:
    def test_nothing_lands_after_the_receiver_fenced(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0, 1], [10, 11])
        opened = sender.open(expected.ticket)
        opened.session.push([0], [0])
        receiver.agent.fence(expected.transfer_id, "the client went away")
        assert isinstance(expected.outcome.wait().error, TransferAborted)
        receiver.stamp_all(2)
        opened.session.push([1], [1])
        error = opened.outcome.wait().error
        assert isinstance(error, (TransferAborted, StaleGeneration))
        assert_untouched(receiver)

    def test_the_sender_hears_why_the_receiver_gave_up(self, pair: Pair) -> None:
        sender, receiver = pair
        first, second = receiver.expect([0, 1], [10, 11]), receiver.expect([0], [12])
        opened, other = sender.open(first.ticket), sender.open(second.ticket)
        other.session.push([0], [0])
        other.outcome.wait()  # by now the receiver knows of both
        receiver.agent.fence(first.transfer_id, "the client went away")
        error = opened.outcome.wait().error
        assert isinstance(error, TransferAborted)
        assert "the client went away" in str(error)

    def test_the_receiver_hears_why_the_sender_gave_up(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0, 1], [10, 11])
        opened = sender.open(expected.ticket)
        opened.session.push([0], [0])
        wait_until(lambda: receiver.agent.stats().blocks_received == 1)
        opened.session.fence("the prompt was cancelled")
        assert isinstance(opened.outcome.wait().error, TransferAborted)
        error = expected.outcome.wait().error
        assert isinstance(error, TransferAborted)
        assert "the prompt was cancelled" in str(error)

    def test_fencing_again_or_after_the_end_does_nothing(self, pair: Pair) -> None:
        expected, opened = hand_over(pair, [0], [0], [0])
        assert expected.outcome.wait().error is opened.outcome.wait().error is None
        for _ in range(2):
            opened.session.fence("late")
            pair[1].agent.fence(expected.transfer_id, "late")
            opened.session.push([0], [1])
        assert len(expected.outcome.results) == len(opened.outcome.results) == 1

    def test_fenced_blocks_serve_the_next_transfer_at_once(self, pair: Pair) -> None:
        sender, receiver = pair
        for turn in range(50):
            fenced = receiver.expect([0, 1, 2], [3, 4, 5])
            stale = sender.open(fenced.ticket)
            stale.session.push([0, 1, 2], [10, 11, 12])
            receiver.agent.fence(fenced.transfer_id, "turn over")
            expected, opened = hand_over(pair, [0, 1, 2], [20 + turn % 9, 30, 31], [3, 4, 5])
            assert expected.outcome.wait().error is opened.outcome.wait().error is None
            assert receiver.read(3) == sender.read(20 + turn % 9)
            assert receiver.read(5) == sender.read(31)
            stale.outcome.wait()

    def test_unchecked_blocks_that_changed_after_the_senders_fence_never_land(
        self, make_end: MakeEnd, unchecked_scheme: str
    ) -> None:
        sender = make_end(unchecked_scheme, owner=1, checksum=False)
        receiver = make_end(unchecked_scheme, owner=2, checksum=False)
        for turn in range(30):
            expected = receiver.expect([0, 1, 2], [3, 4, 5])
            opened = sender.open(expected.ticket)
            opened.session.push([0, 1, 2], [0, 1, 2])
            opened.session.fence("turn over")
            sender.stamp_all(100 + turn)
            expected.outcome.wait(), opened.outcome.wait()
            for target in (3, 4, 5):
                landed = receiver.read(target)
                assert landed not in {stamp(100 + turn, source, 4096) for source in (0, 1, 2)}


class TestExpiry:
    def test_an_unfinished_hand_off_times_out_on_both_sides(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0, 1], [10, 11], ttl_s=0.3)
        opened = sender.open(expected.ticket)
        opened.session.push([0], [0])
        assert isinstance(expected.outcome.wait().error, TransferTimeout)
        assert isinstance(opened.outcome.wait().error, TransferTimeout)

    def test_blocks_for_a_ticket_that_has_expired_are_refused(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0], [10], ttl_s=0.2)
        before = receiver.read(10)
        expected.outcome.wait()
        opened = sender.open(expected.ticket)
        opened.session.push([0], [0])
        assert opened.outcome.wait().error is not None
        assert receiver.read(10) == before

    def test_earlier_deadlines_overtake_later_ones(self, pair: Pair) -> None:
        receiver = pair[1]
        late, early = receiver.expect([0], [0], ttl_s=WAIT_S), receiver.expect([0], [1], ttl_s=0.05)
        assert isinstance(early.outcome.wait().error, TransferTimeout)
        assert not late.outcome.is_called
        receiver.agent.fence(late.transfer_id, "enough")
