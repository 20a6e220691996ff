"""The event stream: every transition of every request, once. Metrics and logs are projections of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from baton.lifecycle import State, Transition, step

Attributes = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Event:
    """One transition. at_s: seconds on the monotonic clock; unix_s: the same instant as Unix time."""

    request_id: str
    transition: Transition
    state: State
    at_s: float
    unix_s: float
    attributes: Attributes = field(default_factory=dict)


Subscriber = Callable[[Event], None]


class EventStream:
    """Hands each event to every subscriber, in order, before `emit` returns."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber(event)


class Lifecycle:
    """The state of one request; moves only along the table and tells the stream. asked: what the client asked for,
    as the event that ends the request repeats it."""

    def __init__(self, request_id: str, events: EventStream, asked: Attributes | None = None) -> None:
        self.request_id = request_id
        self._asked = asked or {}
        self.state = State.RECEIVED
        self._events = events

    def move(self, transition: Transition, **attributes: str | int | float) -> None:
        self.state = step(self.request_id, self.state, transition)
        if self.state.is_terminal:
            attributes |= self._asked
        self._events.emit(
            Event(self.request_id, transition, self.state, time.monotonic(), time.time(), attributes)
        )
