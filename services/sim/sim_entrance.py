"""The router's `entrance` on virtual time: the production `Admission`, with events of the clock for waiting."""

from __future__ import annotations

from collections.abc import Callable

from baton.router.admission import Admission, AdmissionLimits, Capacity
from baton.router.fair_queue import Entry
from baton.sim.clock import Clock
from baton.sim.fleet_file import FleetSpec
from baton.sim.ride import Outcome, Ride


class SimEntrance:
    """admit: takes a ride whose turn has come. refuse: ends one that has no turn."""

    def __init__(
        self,
        spec: FleetSpec,
        clock: Clock,
        capacity: Callable[[], Capacity],
        admit: Callable[[Ride], None],
        refuse: Callable[[Ride, Outcome], None],
    ) -> None:
        self._admission = Admission(AdmissionLimits(spec.max_requests, spec.max_waiting))
        self._queue_timeout_s = spec.queue_timeout_s
        self._capacity = capacity
        self._clock = clock
        self._admit = admit
        self._refuse = refuse
        self._entries: dict[Ride, Entry] = {}
        self._waiting: dict[Entry, Ride] = {}

    @property
    def is_empty(self) -> bool:
        """Nobody waits here, and nobody is on the way."""
        return not self._entries

    @property
    def waiting_tokens(self) -> int:
        return self._admission.waiting_tokens

    def arrive(self, ride: Ride) -> None:
        request = ride.request
        entry = Entry(
            str(ride.number), request.tenant, request.prompt_tokens, request.priority, self._clock.now_s
        )
        self._entries[ride], self._waiting[entry] = entry, ride
        self._admission.arrive(entry)
        self._pump()
        if (shed := self._admission.shed(entry)) is not None:
            self._give_up(shed, Outcome.OVERLOADED)
        if entry in self._waiting:
            self._clock.after(self._queue_timeout_s, lambda: self._give_up(entry, Outcome.QUEUE_TIMEOUT))

    def placed(self, ride: Ride) -> None:
        assert ride.placement is not None
        prediction = ride.placement.prediction
        self._admission.placed(str(ride.number), max(prediction.prefill_s, prediction.reserve_s))

    def computed(self, ride: Ride) -> None:
        self._admission.computed(str(ride.number))
        self._pump()

    def end(self, ride: Ride) -> None:
        """The tokens of the answer are charged at once; their times are not known one by one."""
        entry = self._entries.pop(ride)
        self._admission.served(entry, ride.output_tokens)
        self._admission.end(entry)
        self._pump()

    def _give_up(self, entry: Entry, outcome: Outcome) -> None:
        ride = self._waiting.pop(entry, None)
        if ride is not None:
            self._admission.end(self._entries.pop(ride))
            self._refuse(ride, outcome)

    def _pump(self) -> None:
        if self._admission.waiting:
            for entry in self._admission.admit(self._capacity(), self._clock.now_s):
                self._admit(self._waiting.pop(entry))
