"""Pools on a device: the same blocks in the same places as in host memory. Torch runs here on the CPU; what needs
a GPU is in `test_cuda.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_ends import Outcome

from baton.kvtransfer.base import TransferState
from baton.kvtransfer.block_array import BlockArray, Ids
from baton.kvtransfer.carrier import Loan
from baton.kvtransfer.copying import CopyingPacker, CopyingUnpacker
from baton.kvtransfer.device_blocks import DeviceBlockArray
from baton.kvtransfer.device_staging import DeviceStagingPacker, DeviceStagingUnpacker
from baton.kvtransfer.errors import ChecksumMismatch, MalformedFrame, SchemeUnavailable, TransferAborted
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.leases import PeerLeases, ReadLeases
from baton.kvtransfer.mapping import MappingPacker
from baton.kvtransfer.messages import Digests, Lend, Push
from baton.kvtransfer.stats import Tally

NUM_BLOCKS = 12


def ids_of(*values: int) -> Ids:
    return np.array(values, np.int64)


def make_pool(block_bytes: int, seed: int = 0) -> tuple[torch.Tensor, DeviceBlockArray]:
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (NUM_BLOCKS, block_bytes), dtype=torch.uint8, generator=random)
    return blocks, DeviceBlockArray(blocks)


class Receiver:
    """An inbox over a device pool of zeros, and a transfer of positions 0, 1, 2 into its blocks 9, 4, 7."""

    def __init__(self, block_bytes: int = 64) -> None:
        self.blocks = torch.zeros(NUM_BLOCKS, block_bytes, dtype=torch.uint8)
        self.array = DeviceBlockArray(self.blocks)
        self.inbox = Inbox(self.array, checksum=True, max_open=4, set_alarm=lambda _: None)
        self.outcome, self.tally = Outcome(), Tally()
        self.incoming = self.inbox.expect([0, 1, 2], [9, 4, 7], 60.0, self.outcome)
        self.inbox.attach(self.incoming.slot.index, self.incoming.generation, self)

    def tell_ended(self, generation: int, error: Exception | None) -> None:
        """Nobody is told."""

    def copy(self, loan: Loan) -> None:
        where = (self.incoming.slot.index, self.incoming.generation)
        self.inbox.copy(*where, loan, True, self, self.tally)

    def confirm(self, digests: bytes) -> None:
        where = (self.incoming.slot.index, self.incoming.generation)
        said = np.frombuffer(digests, np.uint64)
        self.inbox.confirm(*where, ids_of(0, 1, 2), said, self, self.tally)


@pytest.fixture
def leases() -> ReadLeases:
    return ReadLeases()


class TestBlocks:
    @settings(max_examples=40, deadline=None)
    @given(
        words=st.sampled_from([1, 2, 512, 40_000]),
        source=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=NUM_BLOCKS),
        data=st.data(),
    )
    def test_blocks_move_as_in_host_memory(self, words: int, source: list[int], data: st.DataObject) -> None:
        target = data.draw(st.permutations(range(NUM_BLOCKS)))[: len(source)]
        lent, device = make_pool(words * 8)
        host_copy, device_copy = torch.zeros_like(lent), torch.zeros_like(lent)
        host = BlockArray(lent.numpy().reshape(-1), words * 8)
        onto_host = BlockArray(host_copy.numpy().reshape(-1), words * 8)
        onto_device = DeviceBlockArray(device_copy)
        onto_host.copy_from(host, ids_of(*source), ids_of(*target), with_digests=False)
        found = onto_device.copy_from(device, ids_of(*source), ids_of(*target), with_digests=True)
        assert torch.equal(host_copy, device_copy)
        assert np.array_equal(found, device.digest(ids_of(*source)))
        onto_host.clear(ids_of(*target[:1]))
        onto_device.clear(ids_of(*target[:1]))
        assert torch.equal(host_copy, device_copy)

    @pytest.mark.parametrize("to_device", [True, False])
    def test_blocks_cross_between_a_device_and_host_memory_with_the_hosts_digests(
        self, to_device: bool
    ) -> None:
        lent, device = make_pool(4096)
        host = BlockArray(lent.numpy().reshape(-1), 4096)
        ids = ids_of(3, 1, 8)
        sender, other = (host, device) if to_device else (device, host)
        packed = CopyingPacker(sender, checksum=True).pack(ids)
        assert packed.digests == CopyingPacker(other, checksum=True).pack(ids).digests
        landed = torch.zeros_like(lent)
        target = DeviceBlockArray(landed) if to_device else BlockArray(landed.numpy().reshape(-1), 4096)
        push = Push(slot=0, generation=1, positions=np.arange(3, dtype=np.int32).tobytes(), digests=b"")
        target.scatter(ids_of(5, 6, 0), CopyingUnpacker().unpack(push, packed.payload[0]).rows)
        assert torch.equal(landed[[5, 6, 0]], lent[[3, 1, 8]])
        assert not landed[[1, 2, 3, 4, 7, 8, 9, 10, 11]].any()

    def test_blocks_that_are_no_whole_number_of_words_are_refused(self) -> None:
        with pytest.raises(SchemeUnavailable, match="12 bytes on cpu is not a multiple of 8"):
            make_pool(12)


class TestDigests:
    @settings(max_examples=60, deadline=None)
    @given(block=st.integers(0, 3), byte=st.integers(0, 511), change=st.integers(1, 255))
    def test_a_changed_byte_changes_the_digest(self, block: int, byte: int, change: int) -> None:
        blocks, array = make_pool(512)
        before = array.digest(ids_of(0, 1, 2, 3))
        blocks[block, byte] ^= change
        assert not np.array_equal(before, array.digest(ids_of(0, 1, 2, 3)))

    def test_blocks_and_words_that_change_places_change_the_digest(self) -> None:
        blocks, array = make_pool(512)
        assert not np.array_equal(array.digest(ids_of(0, 1)), array.digest(ids_of(1, 0)))
        before = array.digest(ids_of(0))
        words = blocks.view(torch.int64)
        words[0, [3, 4]] = words[0, [4, 3]]
        assert not np.array_equal(before, array.digest(ids_of(0)))

    def test_there_is_one_for_each_chunk(self) -> None:
        _, array = make_pool(100_000)
        assert array.chunk_blocks == 2
        found = array.digest(ids_of(0, 1, 2, 3, 4))
        assert len(found) == 3
        assert np.array_equal(found[1:2], array.digest(ids_of(2, 3)))


class TestLending:
    """What `cuda-ipc` does, but for the handle."""

    def test_lent_blocks_land_once_the_senders_digests_say_the_same(self, leases: ReadLeases) -> None:
        lent, pool = make_pool(64)
        receiver, packer = Receiver(), MappingPacker(pool, True, leases)
        receiver.copy(Loan(ids_of(0, 1, 2), pool, ids_of(5, 6, 1), lambda: True))
        assert not receiver.outcome.is_called
        receiver.confirm(packer.digest(ids_of(5, 6, 1)))
        assert receiver.outcome.wait().state is TransferState.DONE
        assert torch.equal(receiver.blocks[[9, 4, 7]], lent[[5, 6, 1]])
        leases.close()

    def test_blocks_that_changed_meanwhile_are_taken_back(self, leases: ReadLeases) -> None:
        lent, pool = make_pool(64)
        receiver, packer = Receiver(), MappingPacker(pool, True, leases)
        digests = packer.digest(ids_of(5, 6, 1))
        lent[6, 3] ^= 1
        receiver.copy(Loan(ids_of(0, 1, 2), pool, ids_of(5, 6, 1), lambda: True))
        with pytest.raises(ChecksumMismatch):
            receiver.confirm(digests)
        assert not receiver.blocks.any()
        receiver.inbox.close("the test is over")
        leases.close()

    def test_blocks_whose_lease_was_taken_back_do_not_stay(self, leases: ReadLeases) -> None:
        _, pool = make_pool(64)
        receiver, packer = Receiver(), MappingPacker(pool, True, leases)
        lease, peer = packer.grant(), PeerLeases(leases.fd)
        looks: list[bool] = []

        def stands_once() -> bool:
            looks.append(peer.stands(lease))
            packer.revoke(lease)  # as the sender's fence does while the copy is under way
            return looks[-1]

        with pytest.raises(TransferAborted, match="fenced"):
            receiver.copy(Loan(ids_of(0, 1, 2), pool, ids_of(5, 6, 1), stands_once))
        assert looks == [True, False]
        assert not receiver.blocks.any()
        receiver.inbox.close("the test is over")
        peer.close()
        leases.close()


class TestStaging:
    """What `nccl` does, but for the process group."""

    def hand_over(
        self, block_bytes: int, damage: Callable[[torch.Tensor], object]
    ) -> tuple[Receiver, torch.Tensor]:
        lent, pool = make_pool(block_bytes)
        receiver = Receiver(block_bytes)
        packer, unpacker = DeviceStagingPacker(pool), DeviceStagingUnpacker(receiver.array)
        packed = packer.pack(ids_of(5, 6, 1))
        staged = packer.staged(packed.payload)
        received = unpacker.buffers[1][: staged.nbytes].copy_(staged)
        damage(received)
        positions = np.arange(3, dtype=np.int32).tobytes()
        push = Push(
            slot=receiver.incoming.slot.index,
            generation=receiver.incoming.generation,
            positions=positions,
            digests=packed.digests,
            staged_bytes=staged.nbytes,
        )
        for message, _ in unpacker.messages(push, received):
            if isinstance(message, Lend):
                receiver.copy(unpacker.borrow(message))
            else:
                assert isinstance(message, Digests)
                receiver.confirm(message.digests)
        return receiver, lent

    @pytest.mark.parametrize("block_bytes", [8, 4096, 300_000])
    def test_what_was_packed_lands(self, block_bytes: int) -> None:
        receiver, lent = self.hand_over(block_bytes, lambda received: None)
        assert receiver.outcome.wait().state is TransferState.DONE
        assert torch.equal(receiver.blocks[[9, 4, 7]], lent[[5, 6, 1]])

    def test_what_was_damaged_on_the_way_is_refused(self) -> None:
        with pytest.raises(ChecksumMismatch):
            self.hand_over(64, lambda received: received[70].bitwise_xor_(1))

    def test_a_payload_of_another_length_is_refused(self) -> None:
        _, pool = make_pool(64)
        unpacker = DeviceStagingUnpacker(pool)
        push = Push(slot=0, generation=1, positions=bytes(8), digests=b"", staged_bytes=100)
        with pytest.raises(MalformedFrame, match="100 bytes for 2 blocks"):
            list(unpacker.messages(push, unpacker.buffers[0][:100]))
