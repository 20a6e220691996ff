"""Keeping an office: at no time do two candidates both find themselves its holder."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from baton.discovery.base import Offices
from baton.errors import BatonError

_CAMPAIGN_S = 0.25
_log = logging.getLogger(__name__)

_boot_clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Goes on while the machine is suspended, as the leases of others do."""


class Candidacy:
    """One candidate for one office. `run` campaigns; `is_leader` is to be read right before each act."""

    def __init__(
        self, offices: Offices, office: str, candidate: str, clock: Callable[[], float] = _boot_clock
    ) -> None:
        self._offices = offices
        self._office = office
        self._candidate = candidate
        self._clock = clock
        self._held_until_s = -1.0
        self._complaint = ""

    @property
    def is_leader(self) -> bool:
        """By this process's own clock, so that it ends in time however long nothing was heard of the registry."""
        return self._clock() < self._held_until_s

    async def run(self) -> None:
        """Until cancelled; then gives the office up."""
        try:
            while True:
                await self._campaign()
                await asyncio.sleep(_CAMPAIGN_S)
        finally:
            self._held_until_s = -1.0
            try:
                await self._offices.resign(self._office, self._candidate)
            except BatonError as error:
                _log.warning("could not resign as %s, the lease will end by itself: %s", self._office, error)

    async def _campaign(self) -> None:
        asked_at_s = self._clock()  # before asking: the registry counts from when it hears of it
        try:
            self._held_until_s = asked_at_s + await self._offices.elect(self._office, self._candidate)
        except BatonError as error:
            if error.message != self._complaint:  # once for each new reason, not four times a second
                self._complaint = error.message
                _log.warning("election of the %s: %s", self._office, error.message)
            return
        self._complaint = ""
