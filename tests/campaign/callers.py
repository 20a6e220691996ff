"""What the workers' own threads do: ask for hand-offs, take them up, push, give up, and get things wrong."""

from __future__ import annotations

from campaign.halves import CarelessReceiving, Receiving, Sending
from campaign.node import Node
from campaign.pool import Violation
from campaign.world import TICK_S, Action, World

from baton.kvtransfer.errors import BadTicket, BlockOutOfRange


class Callers:
    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._to_request = self._chance.randint(2, 4)

    def usual(self) -> dict[Action, int]:
        """Actions and their weights."""
        return {self._request: 8, self._open: 12, self._push: 16}

    def unusual(self) -> dict[Action, int]:
        return {
            self._fence_sender: 4,
            self._fence_receiver: 4,
            self._replay: 1,
            self._replay_elsewhere: 4,
            self._promise_twice: 2,
        }

    def _request(self) -> bool:
        if not self._to_request:
            return False
        node = self._chance.choice(self._world.nodes)
        count = self._chance.randint(1, 4)
        if len(node.pool.free) < count:
            return False
        self._to_request -= 1
        first = self._chance.randint(0, 2)
        positions = list(range(first, first + count))
        self._chance.shuffle(positions)
        receiving = Receiving(node, self._world.next_owner(), positions, node.pool.take(count), self._ttl_s())
        self._world.receivings.append(receiving)
        self._world.note(
            f"{node.name} expects {receiving.owner}: positions {positions} in blocks {receiving.targets}, "
            f"slot {receiving.incoming.slot.index}, generation {receiving.incoming.generation}"
        )
        return True

    def _ttl_s(self) -> float:
        return (self._world.ticks + self._chance.randint(1, 3)) * TICK_S

    def _open(self) -> bool:
        """The worker that is meant to, or after its crash its successor, has the blocks and takes the ticket."""
        taken = {each.receiving.owner for each in self._world.sendings if not each.node.is_gone}
        receiving = self._world.pick([each for each in self._world.receivings if each.owner not in taken])
        if receiving is None or receiving.is_attached:
            return False
        if receiving.node.is_gone:
            self._world.see("a ticket of a receiver that had crashed was taken up")
        return self._send_from(self._sender_of(receiving), receiving, receiving.owner)

    def _sender_of(self, receiving: Receiving) -> Node:
        nodes = self._world.nodes
        return nodes[(receiving.node.worker + 1 + receiving.owner % (len(nodes) - 1)) % len(nodes)]

    def _send_from(self, node: Node, receiving: Receiving, owner: int) -> bool:
        if len(node.pool.free) < len(receiving.positions):
            return False
        sending = Sending(node, receiving, owner)
        self._world.sendings.append(sending)
        self._world.note(f"{node.name} takes up {receiving.owner} for {owner}, from blocks {sending.sources}")
        sending.route()
        return True

    def _push(self) -> bool:
        sendings = [each for each in self._world.sendings if each.unpushed and each.is_usable]
        sending = self._world.pick(sendings)
        if sending is None or sending.would_wait:
            return False
        count = self._chance.randint(1, len(sending.unpushed))
        self._world.note(f"{sending.node.name} pushes {count} blocks of {sending.owner}")
        sending.push(count)
        return True

    # --- giving up -----------------------------------------------------------------------------------------

    def _fence_sender(self) -> bool:
        sending = self._world.pick([each for each in self._world.sendings if each.is_usable])
        if sending is None:
            return False
        if sending.would_wait:
            self._world.see("the sender's fence had to wait")
            return False
        if self._world.is_copying_for(sending.receiving):
            self._world.see("the sender fenced in the middle of a copy")
        if any(link.has_rest for link in sending.node.links):
            self._world.see("a fence had the rest of a frame copied")
        self._world.note(f"{sending.node.name} fences {sending.name}")
        sending.fence()
        return True

    def _fence_receiver(self) -> bool:
        receiving = self._world.pick([each for each in self._world.receivings if each.is_open])
        if receiving is None:
            return False
        if receiving.would_wait:
            self._world.see("the receiver's fence had to wait")
            return False
        if self._world.is_copying_for(receiving):
            self._world.see("the receiver fenced in the middle of a copy")
        self._world.note(f"{receiving.node.name} fences {receiving.name}")
        receiving.fence()
        return True

    # --- getting it wrong ----------------------------------------------------------------------------------

    def _replay(self) -> bool:
        """The same worker gets the same ticket again."""
        sending = self._world.pick([each for each in self._world.sendings if each.is_usable])
        if sending is None:
            return False
        try:
            sending.node.take_up(sending.receiving.ticket, lambda result: None)
        except BadTicket:
            self._world.see("a ticket was refused that its sender had used")
            return True
        raise Violation("ending", f"{sending.name}: the ticket was taken twice")

    def _replay_elsewhere(self) -> bool:
        """Another worker, or a later start of the same, brings other bytes with a ticket that is in use."""
        receiving = self._world.pick([each for each in self._world.receivings if each.is_attached])
        if receiving is None:
            return False
        used_by = [each.node for each in self._world.sendings if each.receiving is receiving]
        others = [node for node in self._world.nodes if node not in (*used_by, receiving.node)]
        node = self._world.pick(others)
        if node is None or not self._send_from(node, receiving, self._world.next_owner()):
            return False
        self._world.see("a ticket in use was replayed by another sender")
        return True

    def _promise_twice(self) -> bool:
        victim = self._world.pick([each for each in self._world.receivings if each.is_promised])
        if victim is None:
            return False
        try:
            careless = CarelessReceiving(
                victim.node, self._world.next_owner(), victim.positions, victim.targets, self._ttl_s()
            )
        except BlockOutOfRange:
            self._world.see("a promised block was refused to another transfer")
            return True
        self._world.note(f"{victim.node.name} promises the blocks of {victim.owner} to {careless.owner} too")
        self._world.receivings.append(careless)
        return True
