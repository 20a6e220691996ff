"""What every transport refuses, and what it makes of its peers; `test_contract.py` has the rest."""

from __future__ import annotations

import random
import threading

import msgspec
import pytest
from transfer_ends import LAYOUT, SECRET, stamp
from transfer_steps import MakeEnd, Pair, assert_untouched, hand_over, wait_until

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.base import KVLayout
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    LayoutMismatch,
    PeerLost,
    SchemeUnavailable,
    TooManyTransfers,
    TransferAborted,
    Unauthenticated,
)


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
