"""The states of a request and the one table of its legal transitions. Role-free, no I/O.

RECEIVED --place--> PLACED --schedule--> PREFILLING --first_tokens--> TRANSFERRING --hand_off--> DECODING
                                              `----------- decode_locally ---------------------------'

A request that had to wait for its turn before it was placed tells so (admit). One that waits long for its first
token may be tried a second time beside it (hedge); either attempt may fail (fall_out), and the second may be the
first to answer (take_over).

Until the first token is out a failed attempt begins anew (retry). From then on the request stays DECODING: what its
workers lose is computed again elsewhere (resume), what they still have moves (migrate), choice by choice.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    RECEIVED = "received"
    PLACED = "placed"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    FINISHED = "finished"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


class Transition(enum.Enum):
    ADMIT = "admit"
    PLACE = "place"
    REFUSE = "refuse"
    SCHEDULE = "schedule"
    FIRST_TOKENS = "first_tokens"
    HAND_OFF = "hand_off"
    DECODE_LOCALLY = "decode_locally"
    HEDGE = "hedge"
    FALL_OUT = "fall_out"
    TAKE_OVER = "take_over"
    RETRY = "retry"
    RESUME = "resume"
    MIGRATE = "migrate"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


TERMINAL = frozenset({State.FINISHED, State.REFUSED, State.FAILED, State.CANCELLED})

TABLE: dict[State, dict[Transition, State]] = {
    State.RECEIVED: {
        Transition.ADMIT: State.RECEIVED,
        Transition.PLACE: State.PLACED,
        Transition.REFUSE: State.REFUSED,
        Transition.FAIL: State.FAILED,
        Transition.CANCEL: State.CANCELLED,
    },
    State.PLACED: {
        Transition.SCHEDULE: State.PREFILLING,
        Transition.HEDGE: State.PLACED,
        Transition.FALL_OUT: State.PLACED,
        Transition.TAKE_OVER: State.PREFILLING,
        Transition.RETRY: State.RECEIVED,
        Transition.FAIL: State.FAILED,
        Transition.CANCEL: State.CANCELLED,
    },
    State.PREFILLING: {
        Transition.FIRST_TOKENS: State.TRANSFERRING,
        Transition.DECODE_LOCALLY: State.DECODING,
        Transition.HEDGE: State.PREFILLING,
        Transition.FALL_OUT: State.PREFILLING,
        Transition.TAKE_OVER: State.PREFILLING,
        Transition.RETRY: State.RECEIVED,
        Transition.FAIL: State.FAILED,
        Transition.CANCEL: State.CANCELLED,
    },
    State.TRANSFERRING: {
        Transition.HAND_OFF: State.DECODING,
        Transition.RESUME: State.DECODING,
        Transition.FINISH: State.FINISHED,
        Transition.RETRY: State.RECEIVED,
        Transition.FAIL: State.FAILED,
        Transition.CANCEL: State.CANCELLED,
    },
    State.DECODING: {
        Transition.RESUME: State.DECODING,
        Transition.MIGRATE: State.DECODING,
        Transition.FINISH: State.FINISHED,
        Transition.RETRY: State.RECEIVED,
        Transition.FAIL: State.FAILED,
        Transition.CANCEL: State.CANCELLED,
    },
    State.FINISHED: {},
    State.REFUSED: {},
    State.FAILED: {},
    State.CANCELLED: {},
}


class IllegalTransition(Exception):
    """A transition that the table does not have: a bug of ours, never of a client."""

    def __init__(self, request_id: str, state: State, transition: Transition) -> None:
        super().__init__(f"request {request_id}: {transition.value} is illegal in state {state.value}")


def step(request_id: str, state: State, transition: Transition) -> State:
    """The state after `transition`; raises IllegalTransition naming request, state and transition."""
    try:
        return TABLE[state][transition]
    except KeyError:
        raise IllegalTransition(request_id, state, transition) from None
