"""Sequences that go on on another decode worker, because theirs is to leave the pool."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeWorker
from baton.sim.prefill_worker import PrefillWorker
from baton.sim.ride import Ride


def move_waiting(
    source: DecodeWorker, prefill: Iterable[PrefillWorker], others: Iterable[DecodeWorker]
) -> None:
    """Whose prompt has not had its turn goes to one of `others` that takes requests, the least loaded: where a
    worker refuses to reserve, the router tries another."""
    targets = [worker for worker in others if worker.is_open]
    coming = [ride for worker in prefill for ride in worker.waiting() if ride.decode is source]
    for ride in coming if targets else ():
        ride.decode = min(targets, key=lambda worker: worker.leased_sequences)
        source.end_sequence(ride)
        ride.decode.lease_sequence(ride)


def move_running(source: DecodeWorker, others: Iterable[DecodeWorker], clock: Clock) -> None:
    """Moves what runs on `source` to those of `others` that take requests, the least loaded first; one sequence
    after the other, at the speed of the slower of both links. Who fits nowhere stays."""
    targets = [worker for worker in others if worker.is_open]
    arrives_at_s = clock.now_s
    for ride in source.running():
        target = min(targets, key=lambda worker: worker.leased_sequences, default=None)
        if target is None or (blocks := target.take_over(ride)) is None:
            return
        held = source.give_up(ride)
        bytes_per_s = min(source.speeds.copy_bytes_per_s, target.speeds.copy_bytes_per_s)
        arrives_at_s += ride.tokens * target.pool.hardware.kv_bytes_per_token / bytes_per_s
        source.end_sequence(ride)
        target.lease_sequence(ride)
        ride.decode, ride.decode_blocks = target, blocks
        clock.at(arrives_at_s, partial(_arrived, ride, source, held, target))


def _arrived(ride: Ride, source: DecodeWorker, held: list[int], target: DecodeWorker) -> None:
    source.blocks.release(held)
    target.land(ride)
