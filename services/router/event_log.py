"""The event stream as JSON lines, for audits and for whoever wants to see a request's life."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from baton.errors import ConfigError
from baton.events import Event
from baton.router.elastic import Decision

_log = logging.getLogger(__name__)


class EventLog:
    """Appends one line an event to `path`. A disk that takes no more costs lines, which are counted, never
    requests."""

    def __init__(self, path: Path) -> None:
        self.lost_lines = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"event_log {path}: {error.strerror}", field="event_log") from error

    def on_event(self, event: Event) -> None:
        line = {
            "time": event.unix_s,
            "request_id": event.request_id,
            "transition": event.transition.value,
            "state": event.state.value,
            **event.attributes,
        }
        self._append(line)

    def on_decision(self, decision: Decision) -> None:
        """Only those that differ from the one before: where it acts, or something else keeps it from that."""
        if decision.is_news:
            self._append({"time": decision.unix_s, "planner": decision.view()})

    def _append(self, line: Mapping[str, object]) -> None:
        try:
            os.write(self._fd, json.dumps(line).encode() + b"\n")
        except OSError as error:
            if not self.lost_lines:
                _log.error("event_log: lines are lost: %s", error.strerror)
            self.lost_lines += 1

    def close(self) -> None:
        os.close(self._fd)
