"""What happens between the workers and to them: messages arrive or do not, links and processes end, time passes."""

from __future__ import annotations

import time

from campaign.halves import Receiving
from campaign.node import Node
from campaign.wire import Frame, QueuedLink
from campaign.world import TICK_S, Action, World

from baton.kvtransfer.errors import PeerLost
from baton.kvtransfer.messages import Attach, Digests, Ended, Lend, Push

MAX_CRASHES = 2


class Network:
    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._crashes = 0

    def usual(self) -> dict[Action, int]:
        """Actions and their weights."""
        return {self.connect: 12, self.send_on: 16, self.deliver: 40, self.notice_loss: 6}

    def unusual(self) -> dict[Action, int]:
        return {
            self._overtake: 6,
            self._duplicate: 6,
            self._lose: 3,
            self._corrupt: 3,
            self._reset: 2,
            self._crash: 2,
            self._tick: 1,
        }

    # --- as it should be -----------------------------------------------------------------------------------

    def connect(self) -> bool:
        node = self._world.pick([each for each in self._world.nodes if each.waiting])
        if node is None or not self._world.has_free_io_thread(node):
            return False
        epoch, sessions = next(iter(node.waiting.items()))
        peer = self._world.nodes[int(sessions[0].ticket.endpoints[0])]
        scheme = self._chance.choice(("copying", "direct", "mapping"))
        self._world.note(f"{node.name} connects to {peer.name} ({scheme})")
        self._world.see(f"a link was made: {scheme}")
        with self._world.io_thread(node):
            if not node.connect(epoch, peer, scheme):
                self._world.see("a ticket of a receiver's former start was refused")
            elif peer.start > 1:
                self._world.see("a restarted receiver was connected to")
        return True

    def send_on(self) -> bool:
        """Whoever has time for it goes on sending what a caller left over."""
        links = [link for node in self._world.nodes for link in node.links if link.could_send]
        link = self._world.pick(links)
        if link is None:
            return False
        link.go_on()
        return True

    def deliver(self) -> bool:
        link = self._link_with_frames()
        return link is not None and self._hand_over(link, link.wire.pop(0))

    def notice_loss(self) -> bool:
        """The other end of a connection hears that it is gone, whatever was still on its way."""
        lost = [
            link
            for node in self._world.nodes
            for link in node.links
            if link.far.is_closed and not link.is_closed
        ]
        link = self._world.pick(lost)
        if link is None or not self._world.has_free_io_thread(link.node):
            return False
        self._world.note(f"{link.node.name} notices that its link to {link.far.node.name} is gone")
        with self._world.io_thread(link.node):
            link.close(PeerLost("the peer closed the connection"))
        return True

    # --- faults of the way ---------------------------------------------------------------------------------

    def _overtake(self) -> bool:
        link = self._link_with_frames()
        if link is None or len(link.wire) < 2:
            return False
        self._world.see("a frame overtook others")
        return self._hand_over(link, link.wire.pop(self._chance.randrange(1, len(link.wire))))

    def _duplicate(self) -> bool:
        """A frame arrives, and stays on its way for another time."""
        link = self._link_with_frames()
        if link is None:
            return False
        at = self._chance.randrange(len(link.wire))
        self._world.see("a frame was duplicated")
        link.wire.append(link.wire[at])
        return self._hand_over(link, link.wire.pop(at))

    def _lose(self) -> bool:
        link = self._link_with_frames()
        if link is None:
            return False
        message = link.wire.pop(self._chance.randrange(len(link.wire))).message
        self._world.note(f"a {type(message).__name__} from {link.node.name} is lost")
        self._world.see("an acknowledgement was lost" if isinstance(message, Ended) else "a frame was lost")
        return True

    def _corrupt(self) -> bool:
        """A payload's byte changes; only agents that check can be expected to notice."""
        link = self._link_with_frames()
        if link is None or not self._world.checksum or not link.wire[0].payload:
            return False
        frame = link.wire.pop(0)
        payload = bytearray(frame.payload)
        payload[self._chance.randrange(len(payload))] ^= 1 << self._chance.randrange(8)
        self._world.see("a payload was changed on its way")
        return self._hand_over(link, Frame(frame.header, bytes(payload)))

    def _reset(self) -> bool:
        links = [each for node in self._world.nodes for each in node.links if not each.is_closed]
        link = self._world.pick(links)
        if link is None or not self._world.has_free_io_thread(link.node):
            return False
        self._world.note(f"{link.node.name} loses its link to {link.far.node.name}")
        self._world.see("a link was reset")
        with self._world.io_thread(link.node):
            link.close(PeerLost("the connection was reset"))
        return True

    # --- faults of the workers -----------------------------------------------------------------------------

    def _crash(self) -> bool:
        """A process dies and is started again at once; its peers find out by and by."""
        if self._crashes == MAX_CRASHES:
            return False
        node = self._chance.choice(self._world.nodes)
        if self._world.is_running(node):
            return False
        self._crashes += 1
        self._world.note(f"{node.name} crashes, and starts again")
        for receiving in self._world.receivings:
            self._see_crash(node, receiving)
        if any(isinstance(frame.message, Ended) for link in node.links for frame in link.wire):
            self._world.see("a receiver crashed with its acknowledgement on the way")
        node.die()
        self._world.nodes[node.worker] = self._world.start(node.worker, node.start + 1)
        return True

    def _see_crash(self, node: Node, receiving: Receiving) -> None:
        if node is receiving.node and receiving.is_open and receiving.incoming.landed.any():
            self._world.see("a receiver crashed with half of the blocks landed")
        senders = [each.node for each in self._world.sendings if each.receiving is receiving]
        if node in senders and self._world.is_copying_for(receiving):
            self._world.see("a sender crashed in the middle of a copy")

    def _tick(self) -> bool:
        self._world.ticks += 1
        self._world.note(f"the clock shows {self._world.ticks}")
        for node in self._world.nodes:
            self.expire(node)
        return True

    def expire(self, node: Node) -> None:
        if not self._world.has_free_io_thread(node):
            return
        before = len(node.inbox) + len(node.outbox)
        with self._world.io_thread(node):
            node.expire(time.monotonic() + (self._world.ticks + 0.5) * TICK_S)
        if len(node.inbox) + len(node.outbox) < before:
            self._world.see("time ran out for a transfer")

    # --- within --------------------------------------------------------------------------------------------

    def _link_with_frames(self) -> QueuedLink | None:
        """One whose other end could take a frame now."""
        links = [link.far for node in self._world.nodes for link in node.links if link.far.wire]
        link = self._world.pick(links)
        if link is None or not self._world.has_free_io_thread(link.far.node):
            return None
        return link

    def _hand_over(self, link: QueuedLink, frame: Frame) -> bool:
        node, message = link.far.node, frame.message
        self._world.note(f"{node.name} gets", message)
        if isinstance(message, Attach | Push | Lend | Digests):
            self._see_late(node, message)
        with self._world.delivery(node, message):
            link.far.receive(frame)
        return True

    def _see_late(self, node: Node, message: Attach | Push | Lend | Digests) -> None:
        tenants = [each for each in self._world.receivings if each.node is node and each.is_open]
        tenant = next((each for each in tenants if each.incoming.slot.index == message.slot), None)
        if tenant is None:
            self._world.see("a frame came after the end of its transfer")
        elif tenant.incoming.generation != message.generation:
            self._world.see("a frame came for a slot that another transfer has by now")
