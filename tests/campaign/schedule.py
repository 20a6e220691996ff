"""One schedule: two or three workers, a few hand-offs, and a seeded chance that says what happens next.

Nothing runs by itself: each step of each thread is an action. An action may be interrupted wherever production
code could lose the processor or let go of it (`World.pause`), and actions of other threads and workers then run
within it. What a real thread would have to wait for (a lock that is held, the one I/O thread of a worker) cannot
be chosen at that moment. The links are worse than real ones, which sign and count their frames: here a frame
may also be repeated, lost, or overtake others.
"""

from __future__ import annotations

from collections import Counter

from campaign.callers import Callers
from campaign.halves import Receiving, Sending
from campaign.network import Network
from campaign.node import Node
from campaign.pool import NUM_BLOCKS, Violation
from campaign.world import Action, World

from baton.kvtransfer.base import TransferResult, TransferState

MAX_STEPS = 60
MAX_IDLE_STEPS = 4
TROUBLE_CHANCE = 0.25


class Schedule:
    def __init__(self, seed: int, seen: Counter[str] | None = None) -> None:
        self._world = World(seed, Counter() if seen is None else seen)
        self._network = Network(self._world)
        self._world.deck = self._draw_deck(Callers(self._world))

    def _draw_deck(self, callers: Callers) -> list[Action]:
        """Every schedule has a few kinds of trouble, not all: what one kind ends, another could not reach.

        That is swarm testing (Groce et al., ISSTA 2012, https://doi.org/10.1145/2338965.2336763).
        """
        weights = callers.usual() | self._network.usual()
        for action, weight in (callers.unusual() | self._network.unusual()).items():
            if self._world.chance.random() < TROUBLE_CHANCE:
                weights[action] = weight
        return [action for action, weight in weights.items() for _ in range(weight)]

    @property
    def trace(self) -> str:
        """What happened so far, a line an action; what is indented happened while the last line that is not was
        interrupted."""
        lines = self._world.trace
        return "\n".join(f"{'    ' * depth}{what} {message or ''}".rstrip() for depth, what, message in lines)

    def run(self) -> None:
        """Raises Violation where a promise was broken."""
        try:
            self._take_steps()
            self._world.deck = ()
            self._settle()
            self._require_baseline()
            for node in self._world.nodes:
                node.close_links()
        finally:
            for node in self._world.nodes:
                node.free()

    def _take_steps(self) -> None:
        idle_steps = 0
        for _ in range(MAX_STEPS):
            idle_steps = 0 if self._world.step() else idle_steps + 1
            if idle_steps == MAX_IDLE_STEPS:
                break

    def _settle(self) -> None:
        """All that is on its way arrives; then time runs out for what is still open, and its last words arrive."""
        self._quiesce()
        self._world.ticks += 100
        for node in self._world.nodes:
            self._network.expire(node)
        self._quiesce()

    def _quiesce(self) -> None:
        network = self._network
        while any([network.connect(), network.send_on(), network.deliver(), network.notice_loss()]):
            pass

    def _require_baseline(self) -> None:
        halves: list[Receiving | Sending] = [*self._world.receivings, *self._world.sendings]
        for half in halves:
            if half.is_open:
                raise Violation("ending", f"{half.name} never ended")
            if half.result is not None:
                self._world.see(f"{half.name.split()[0]} ended as {half.result.state.value}")
        for sending in self._world.sendings:
            received = sending.receiving.result
            if _is_done(sending.result) and received is not None and not _is_done(received):
                raise Violation("ending", f"{sending.name} is done, but its receiver failed")
        for node in self._world.nodes:
            self._require_nothing_left(node)

    def _require_nothing_left(self, node: Node) -> None:
        node.pool.check()
        left = {
            "blocks": NUM_BLOCKS - len(node.pool.free),
            "blocks free twice": len(node.pool.free) - len(set(node.pool.free)),
            "promised blocks": int(node.inbox._promised.sum()),
            "expected transfers": len(node.inbox),
            "sending sessions": len(node.outbox),
            "leases": int((node.leases._words != 0).sum()) if "leases" in vars(node) else 0,
            "carried sessions": sum(len(channel._carried) for channel in node.channels.values()),
        }
        for what, count in left.items():
            if count:
                raise Violation("leak", f"{count} {what} are left on {node.name}")


def _is_done(result: TransferResult | None) -> bool:
    return result is not None and result.state is TransferState.DONE
