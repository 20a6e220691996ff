"""What a schedule's actions share: the workers, their hand-offs, one seeded chance, the clock and the trace."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from campaign.halves import Receiving, Sending
from campaign.node import Node
from campaign.pool import Violation

from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.messages import Lend, Message, Push

TICK_S = 1000.0
"""The virtual clock's step: so long that the real time which passes meanwhile is nothing."""

MAX_DEPTH = 2
PAUSE_CHANCE = 0.2
STALL_CHANCE = 0.4
TRIES = 8

Action = Callable[[], bool]
"""Does one thing, somewhere; False where there is nothing of the kind to do."""

T = TypeVar("T")


class World:
    def __init__(self, seed: int, seen: Counter[str]) -> None:
        """seen: how often each action and each race came up; counted on over many schedules."""
        self.trace: list[tuple[int, str, Message | None]] = []
        self.seen = seen
        self.chance = random.Random(seed)
        self.checksum = self.chance.random() < 0.5
        self.ticks = 0
        self.receivings: list[Receiving] = []
        self.sendings: list[Sending] = []
        self.deck: Sequence[Action] = ()
        self._owners = 0
        self._interrupted: list[Node] = []
        self._being_delivered: list[tuple[Node, Message]] = []
        self.nodes = [self.start(worker, 1) for worker in range(self.chance.choice((2, 2, 3)))]

    def start(self, worker: int, start: int) -> Node:
        return Node(worker, start, self.checksum, self.pause, self.is_stalled, self.next_owner)

    def next_owner(self) -> int:
        self._owners += 1
        return self._owners

    def pick(self, choices: Sequence[T]) -> T | None:
        return choices[int(self.chance.random() * len(choices))] if choices else None

    def note(self, what: str, message: Message | None = None) -> None:
        """A line of the trace; the text of `message` follows."""
        self.trace.append((len(self._interrupted), what, message))

    def see(self, race: str) -> None:
        self.seen[race] += 1

    # --- the order of things -------------------------------------------------------------------------------

    def step(self) -> bool:
        """One action out of the deck, and the check that it left all blocks alone that are not its own. False
        where, after several tries, there seems to be nothing left to do."""
        try:
            is_done = any(self._draw()() for _ in range(TRIES))
        except TransferError as error:
            raise Violation("ending", f"an action failed: {type(error).__name__}: {error}") from error
        for node in self.nodes:
            node.pool.check()
        return is_done

    def _draw(self) -> Action:
        return self.deck[int(self.chance.random() * len(self.deck))]

    def pause(self, node: Node) -> None:
        """Called out of production code of `node`: others may go on here. An empty deck ends all interruptions."""
        if not self.deck or len(self._interrupted) >= MAX_DEPTH or self.chance.random() >= PAUSE_CHANCE:
            return
        self._interrupted.append(node)
        for _ in range(self.chance.randint(1, 4)):
            self.step()
        self._interrupted.pop()

    def is_stalled(self) -> bool:
        """An empty deck ends all stalls, too."""
        return bool(self.deck) and self.chance.random() < STALL_CHANCE

    @contextmanager
    def io_thread(self, node: Node) -> Iterator[None]:
        node.is_on_io_thread = True
        yield
        node.is_on_io_thread = False

    def has_free_io_thread(self, node: Node) -> bool:
        """Whether the node's I/O thread could run now, and would not wait for a lock of a session or link."""
        if not self._interrupted:
            return True
        if node.is_on_io_thread or any(link.would_wait for link in node.links):
            return False
        return not any(each.would_wait for each in self.sendings if each.node is node and each.is_open)

    def is_running(self, node: Node) -> bool:
        """Whether code of this node is interrupted just now."""
        return node in self._interrupted

    @contextmanager
    def delivery(self, node: Node, message: Message) -> Iterator[None]:
        self._being_delivered.append((node, message))
        with self.io_thread(node):
            yield
        self._being_delivered.pop()

    def is_copying_for(self, receiving: Receiving) -> bool:
        """Whether one of its frames is being taken in, interrupted just now."""
        return any(
            node is receiving.node
            and isinstance(message, Push | Lend)
            and message.generation == receiving.incoming.generation
            for node, message in self._being_delivered
        )
