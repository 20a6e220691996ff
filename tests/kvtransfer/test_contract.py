"""What every transport has to do, whatever it is made of."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_ends import LAYOUT, SECRET, WAIT_S, End, Expected, Opened, stamp

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.base import KVLayout, TransferState
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    LayoutMismatch,
    PeerLost,
    SchemeUnavailable,
    StaleGeneration,
    TooManyTransfers,
    TransferAborted,
    TransferTimeout,
    Unauthenticated,
)

Pair = tuple[End, End]
MakeEnd = Callable[..., End]


def hand_over(
    pair: Pair, positions: list[int], source: list[int], target: list[int]
) -> tuple[Expected, Opened]:
    sender, receiver = pair
    expected = receiver.expect(positions, target)
    opened = sender.open(expected.ticket)
    opened.session.push(positions, source)
    return expected, opened


def assert_untouched(end: End, *except_blocks: int) -> None:
    for block_id in set(range(end.memory.num_blocks)) - set(except_blocks):
        assert end.read(block_id) == stamp(end.owner, block_id, end.memory.block_bytes)


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


class TestRefusals:
    def test_a_ticket_is_good_for_one_use(self, pair: Pair) -> None:
        expected, opened = hand_over(pair, [0], [0], [0])
        with pytest.raises(BadTicket, match="used before"):
            pair[0].open(expected.ticket)
        assert opened.outcome.wait().error is None

    def test_a_ticket_replayed_by_another_sender_harms_nobody(
        self, pair: Pair, make_end: MakeEnd, scheme: str
    ) -> None:
        sender, receiver = pair
        thief = make_end(scheme, owner=3)
        expected = receiver.expect([0, 1], [10, 11])
        opened = sender.open(expected.ticket)
        opened.session.push([0], [0])
        wait_until(lambda: receiver.agent.stats().blocks_received == 1)
        stolen = thief.open(expected.ticket)
        stolen.session.push([0, 1], [0, 1])
        assert isinstance(stolen.outcome.wait().error, BadTicket)
        opened.session.push([1], [1])
        assert expected.outcome.wait().error is opened.outcome.wait().error is None
        assert (receiver.read(10), receiver.read(11)) == (sender.read(0), sender.read(1))
        assert receiver.agent.stats().refused["BadTicket"] >= 1

    @pytest.mark.parametrize(
        "field", ["model", "dtype", "block_size", "layers", "kv_heads", "head_dim", "tp_rank"]
    )
    def test_a_layout_that_differs_is_refused_by_field(
        self, pair: Pair, make_end: MakeEnd, field: str
    ) -> None:
        value = "other" if isinstance(getattr(LAYOUT, field), str) else 7
        layout: KVLayout = msgspec.structs.replace(LAYOUT, **{field: value})
        stranger = make_end("loopback", layout=layout)
        expected = pair[1].expect([0], [0])
        with pytest.raises(LayoutMismatch, match=f"{field}: .*{value}"):
            stranger.open(expected.ticket)
        pair[1].agent.fence(expected.transfer_id, "enough")

    def test_blocks_of_another_size_are_refused(self, pair: Pair, make_end: MakeEnd) -> None:
        expected = pair[1].expect([0], [0])
        with pytest.raises(LayoutMismatch, match="8192 bytes here, 4096 at the peer"):
            make_end("loopback", block_bytes=8192).open(expected.ticket)
        pair[1].agent.fence(expected.transfer_id, "enough")

    def test_a_ticket_of_another_cluster_is_refused(self, pair: Pair, make_end: MakeEnd, scheme: str) -> None:
        expected = pair[1].expect([0], [0])
        with pytest.raises(BadTicket, match="signature"):
            make_end(scheme, secret=b"another").open(expected.ticket)
        pair[1].agent.fence(expected.transfer_id, "enough")

    def test_a_sender_without_the_secret_gets_no_connection(
        self, pair: Pair, make_end: MakeEnd, scheme: str
    ) -> None:
        stranger = make_end(scheme, secret=b"another")
        expected = pair[1].expect([0], [0])
        resealed = tickets.seal(tickets.open_sealed(expected.ticket, SECRET), b"another")
        opened = stranger.open(resealed)
        opened.session.push([0], [0])
        assert isinstance(opened.outcome.wait().error, Unauthenticated)
        pair[1].agent.fence(expected.transfer_id, "enough")
        assert_untouched(pair[1])

    def test_blocks_outside_the_pool_are_refused_by_name(self, pair: Pair) -> None:
        sender, receiver = pair
        with pytest.raises(BlockOutOfRange, match="block id 64 is outside the pool of 64"):
            receiver.expect([0], [64])
        expected = receiver.expect([0], [0])
        opened = sender.open(expected.ticket)
        with pytest.raises(BlockOutOfRange, match="block id -1"):
            opened.session.push([0], [-1])
        with pytest.raises(BlockOutOfRange, match="2 positions for 1 blocks"):
            opened.session.push([0, 1], [0])
        opened.session.fence("enough")
        receiver.agent.fence(expected.transfer_id, "enough")

    def test_a_block_is_promised_to_one_transfer_at_a_time(self, pair: Pair) -> None:
        receiver = pair[1]
        expected = receiver.expect([0, 1], [5, 6])
        with pytest.raises(BlockOutOfRange, match="block 6 is promised"):
            receiver.expect([0], [6])
        receiver.agent.fence(expected.transfer_id, "enough")
        again = receiver.expect([0], [6])
        receiver.agent.fence(again.transfer_id, "enough")

    @pytest.mark.parametrize(
        ("positions", "block_ids", "reason"),
        [
            ([0], [1, 2], "1 positions"),
            ([3, 3], [1, 2], "position 3"),
            ([1, 2], [4, 4], "block id 4"),
            ([-1], [0], "-1"),
        ],
    )
    def test_a_promise_that_makes_no_sense_is_refused(
        self, pair: Pair, positions: list[int], block_ids: list[int], reason: str
    ) -> None:
        with pytest.raises(BlockOutOfRange, match=reason):
            pair[1].expect(positions, block_ids)

    def test_open_transfers_are_bounded_on_both_sides(self, make_end: MakeEnd, scheme: str) -> None:
        sender, receiver = make_end(scheme, max_open=2), make_end(scheme)
        expected = [receiver.expect([0], [block_id]) for block_id in range(3)]
        opened = [sender.open(each.ticket) for each in expected[:2]]
        with pytest.raises(TooManyTransfers, match="2 sending sessions"):
            sender.open(expected[2].ticket)
        narrow = make_end(scheme, max_open=1)
        only = narrow.expect([0], [0])
        with pytest.raises(TooManyTransfers, match="1 transfers"):
            narrow.expect([0], [1])
        narrow.agent.fence(only.transfer_id, "enough")
        for each, session in zip(expected, opened, strict=False):
            session.session.fence("enough")
            receiver.agent.fence(each.transfer_id, "enough")
        receiver.agent.fence(expected[2].transfer_id, "enough")


class TestPeers:
    def test_an_unreachable_peer_is_an_error_that_names_the_endpoint(
        self, pair: Pair, make_end: MakeEnd, scheme: str
    ) -> None:
        gone = make_end(scheme)
        expected = gone.expect([0], [0])
        gone.agent.close()
        opened = pair[0].open(expected.ticket)
        error = opened.outcome.wait().error
        assert isinstance(error, PeerLost)
        assert gone.agent.endpoints[0] in str(error)

    def test_schemes_that_do_not_meet_are_an_error_that_lists_both(
        self, pair: Pair, make_end: MakeEnd, scheme: str
    ) -> None:
        other = next(name for name in ("loopback", "tcp") if name != scheme)
        expected = pair[1].expect([0], [0])
        error = make_end(other).open(expected.ticket).outcome.wait().error
        assert isinstance(error, SchemeUnavailable)
        assert f"{scheme}://" in str(error)
        assert other in str(error)
        pair[1].agent.fence(expected.transfer_id, "enough")

    def test_a_peer_that_closes_ends_the_transfers_of_the_other_side(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0, 1], [10, 11])
        opened = sender.open(expected.ticket)
        opened.session.push([0], [0])
        wait_until(lambda: receiver.agent.stats().blocks_received == 1)
        receiver.agent.close()
        assert isinstance(opened.outcome.wait().error, (PeerLost, TransferAborted))
        assert isinstance(expected.outcome.wait().error, TransferAborted)

    def test_after_a_peer_has_restarted_a_new_channel_is_made(
        self, pair: Pair, make_end: MakeEnd, scheme: str
    ) -> None:
        sender, receiver = pair
        first, opened = hand_over(pair, [0], [0], [0])
        assert first.outcome.wait().error is opened.outcome.wait().error is None
        receiver.agent.close()
        successor = make_end(scheme, owner=4)
        second, reopened = hand_over((sender, successor), [0], [1], [0])
        assert second.outcome.wait().error is reopened.outcome.wait().error is None
        assert successor.read(0) == sender.read(1)

    def test_a_closed_agent_ends_everything_and_takes_nothing_more(self, pair: Pair) -> None:
        sender, receiver = pair
        expected = receiver.expect([0], [0])
        opened = sender.open(expected.ticket)
        later = receiver.expect([0], [1])
        for end in (sender, receiver):
            end.agent.close()
            end.agent.close()
        assert isinstance(opened.outcome.wait().error, TransferAborted)
        assert isinstance(expected.outcome.wait().error, TransferAborted)
        assert isinstance(later.outcome.wait().error, TransferAborted)
        with pytest.raises(TransferAborted, match="closed"):
            receiver.expect([0], [0])
        with pytest.raises(TransferAborted, match="closed"):
            sender.open(later.ticket)


class TestManyAtOnce:
    def test_concurrent_transfers_with_cancels_never_mix_their_blocks(
        self, make_end: MakeEnd, scheme: str
    ) -> None:
        """Eight threads, one pool on each side; every block that landed is the one that was sent."""
        threads, turns, size = 8, 25, 6
        sender = make_end(scheme, owner=1, num_blocks=threads * size, block_bytes=2000)
        receiver = make_end(scheme, owner=2, num_blocks=threads * size, block_bytes=2000)
        wrong: list[str] = []

        def work(thread: int) -> None:
            chance = random.Random(thread)
            for turn in range(turns):
                mine = [thread * size + i for i in range(size)]
                source, target = chance.sample(mine, size), chance.sample(mine, size)
                for block_id in source:
                    sender.write(block_id, stamp(1000 + turn, block_id, 2000))
                expected = receiver.expect(range(size), target)
                opened = sender.open(expected.ticket)
                cut = chance.randint(0, size)
                opened.session.push(range(cut), source[:cut])
                is_cancelled = True
                match chance.randrange(4):
                    case 0:
                        receiver.agent.fence(expected.transfer_id, "chance")
                    case 1:
                        opened.session.fence("chance")
                        receiver.agent.fence(expected.transfer_id, "chance")
                    case _:
                        is_cancelled = False
                opened.session.push(range(cut, size), source[cut:])
                if (error := expected.outcome.wait().error) is not None:
                    opened.session.fence("the other side gave up")
                    wrong.extend([] if is_cancelled else [f"thread {thread}, turn {turn}: {error}"])
                    continue
                if (error := opened.outcome.wait().error) is not None and not is_cancelled:
                    wrong.append(f"thread {thread}, turn {turn}: {error}")
                for source_id, target_id in zip(source, target, strict=True):
                    if receiver.read(target_id) != stamp(1000 + turn, source_id, 2000):
                        wrong.append(f"thread {thread}, turn {turn}, block {target_id}")

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.001)
