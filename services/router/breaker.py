"""A circuit breaker: a worker that answers, but again and again with faults of its own, gets a rest.

CLOSED --`FAULTS` in a row--> OPEN --rest over--> one probe at a time --success--> CLOSED
                                `<------------------fault, twice the rest-------'

What is the client's fault, or nobody's (bad input, a full queue, a cancel, a deadline), says nothing of the worker.
A worker that cannot be reached at all is the connection's to notice.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from baton.errors import BatonError, HandoffFailed, Unavailable, WorkerFailed


class Standing(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


FAULTS = 5
FIRST_REST_S = 1.0
MAX_REST_S = 60.0

_SERVER_FAULTS = (HandoffFailed, Unavailable, WorkerFailed)


class Breaker:
    """Of one worker, on the router's event loop. Its advice: whoever has no other worker may still ask this one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._faults = 0
        self._rest_s = FIRST_REST_S
        self._rests_until_s: float | None = None
        self._is_probing = False

    @property
    def is_closed(self) -> bool:
        return self._rests_until_s is None

    @property
    def standing(self) -> Standing:
        if self.is_closed:
            return Standing.CLOSED
        return Standing.HALF_OPEN if self._is_probing or self.allows() else Standing.OPEN

    def allows(self) -> bool:
        """Whether the worker should get a request now."""
        return self._rests_until_s is None or self._clock() >= self._rests_until_s

    def begin(self) -> None:
        """A request is being sent; after a rest it is the probe, and the next may follow when another rest is over,
        should nothing be heard of this one."""
        if self._rests_until_s is not None and self.allows():
            self._rests_until_s = self._clock() + self._rest_s
            self._is_probing = True

    def succeed(self) -> None:
        self._faults, self._rest_s = 0, FIRST_REST_S
        self._rests_until_s, self._is_probing = None, False

    def fail(self, error: BatonError) -> None:
        if not isinstance(error, _SERVER_FAULTS):
            return
        self._faults += 1
        if self._is_probing:
            self._rest_s = min(2 * self._rest_s, MAX_REST_S)
            self._open()
        elif self.is_closed and self._faults >= FAULTS:
            self._open()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what is raised inside."""
        try:
            yield
        except BatonError as error:
            self.fail(error)
            raise

    def _open(self) -> None:
        """What was under way before the rest and fails during it changes nothing."""
        self._rests_until_s, self._is_probing = self._clock() + self._rest_s, False
