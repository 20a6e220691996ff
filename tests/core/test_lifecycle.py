import pytest

from baton.events import Event, EventStream, Lifecycle
from baton.lifecycle import TABLE, TERMINAL, IllegalTransition, State, Transition, step


def test_a_disaggregated_request_passes_every_station() -> None:
    events: list[Event] = []
    stream = EventStream()
    stream.subscribe(events.append)
    life = Lifecycle("r1", stream)
    way = [
        Transition.PLACE,
        Transition.SCHEDULE,
        Transition.FIRST_TOKENS,
        Transition.HAND_OFF,
        Transition.FINISH,
    ]
    for transition in way:
        life.move(transition)
    assert [event.transition for event in events] == way
    assert life.state is State.FINISHED
    assert all(event.request_id == "r1" for event in events)


def test_an_illegal_transition_names_request_state_and_transition() -> None:
    with pytest.raises(IllegalTransition, match=r"r7.*hand_off.*received"):
        step("r7", State.RECEIVED, Transition.HAND_OFF)


@pytest.mark.parametrize("state", [state for state in State if state.is_terminal])
def test_nothing_leaves_a_terminal_state(state: State) -> None:
    for transition in Transition:
        with pytest.raises(IllegalTransition):
            step("r", state, transition)


def test_every_live_state_can_fail_and_be_cancelled() -> None:
    for state in set(State) - TERMINAL:
        assert step("r", state, Transition.FAIL) is State.FAILED
        assert step("r", state, Transition.CANCEL) is State.CANCELLED


def test_every_state_is_reachable() -> None:
    reached = {State.RECEIVED}
    while True:
        further = {target for state in reached for target in TABLE[state].values()} | reached
        if further == reached:
            break
        reached = further
    assert reached == set(State)
