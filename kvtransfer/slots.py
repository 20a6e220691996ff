"""The places in a receive table where promises lie."""

from __future__ import annotations

import itertools

from baton.kvtransfer.errors import StaleGeneration, TooManyTransfers
from baton.kvtransfer.incoming import Slot


class Slots:
    """Made when they are first needed, and reused. `take` and `give_back` are called under the table's lock, `at`
    by any thread."""

    def __init__(self, limit: int) -> None:
        """limit: slots taken at once."""
        self._limit = limit
        self._slots: list[Slot] = []
        self._vacant: list[Slot] = []
        self._generations = itertools.count(1)

    def take(self) -> tuple[Slot, int]:
        """A slot and a generation that was never given before. Raises TooManyTransfers."""
        if not self._vacant:
            if len(self._slots) >= self._limit:
                raise TooManyTransfers(f"{self._limit} transfers are expected, the limit")
            self._slots.append(Slot(len(self._slots)))
            self._vacant.append(self._slots[-1])
        return self._vacant.pop(), next(self._generations)

    def give_back(self, slot: Slot) -> None:
        self._vacant.append(slot)

    def at(self, index: int) -> Slot:
        """Raises StaleGeneration where there never was one."""
        if not 0 <= index < len(self._slots):
            raise StaleGeneration(f"slot {index}: no transfer was ever expected there")
        return self._slots[index]
