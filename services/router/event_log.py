"""The event stream as JSON lines, for audits and for whoever wants to see a request's life."""

from __future__ import annotations

import json
from pathlib import Path

from baton.errors import ConfigError
from baton.events import Event


class EventLog:
    """Appends one line an event to `path`."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", buffering=1, encoding="utf-8")
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
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()
