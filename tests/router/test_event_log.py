import json
from pathlib import Path

import pytest

from baton.errors import ConfigError
from baton.events import Event
from baton.lifecycle import State, Transition
from baton.router.event_log import EventLog

EVENT = Event("r1", Transition.PLACE, State.PLACED, at_s=1.0, unix_s=2.0, attributes={"decode": "d0"})


def test_each_event_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.on_event(EVENT)
    log.on_event(EVENT)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    log.close()
    expected = {"time": 2.0, "request_id": "r1", "transition": "place", "state": "placed", "decode": "d0"}
    assert lines == [expected, expected]


def test_a_full_disk_costs_lines_and_no_request() -> None:
    log = EventLog(Path("/dev/full"))
    log.on_event(EVENT)
    log.on_event(EVENT)
    log.close()
    assert log.lost_lines == 2


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        EventLog(tmp_path / "nowhere" / "events.jsonl")
