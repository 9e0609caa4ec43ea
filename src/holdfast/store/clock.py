"""The clock of one process: what it stamps its entries of the journal with, and what it has seen of others' clocks."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from holdfast.core.causality import DRIFT_MAX_US, believed, next_stamp
from holdfast.model.event import Stamp

log = structlog.get_logger(__name__)


def _wall_us() -> int:
    return time.time_ns() // 1000


class Clock:
    """A hybrid logical clock (see `holdfast.core.causality`); ``wall_us`` is Unix time in microseconds."""

    def __init__(self, wall_us: Callable[[], int] = _wall_us, drift_max_us: int = DRIFT_MAX_US) -> None:
        self._wall_us = wall_us
        self._drift_max_us = drift_max_us
        self.last = Stamp(0)
        """The newest stamp given or seen."""
        self._apart = False

    @property
    def wall_ms(self) -> float:
        """The wall clock: Unix time, milliseconds."""
        return self._wall_us() / 1000

    def stamp(self) -> Stamp:
        """For something that happens, or is sent, now."""
        self.last = next_stamp(self.last, self._wall_us())
        return self.last

    def saw(self, stamp: Stamp) -> None:
        """Something that carried this stamp arrived. One that is too far ahead is not followed; that is logged."""
        wall_us = self._wall_us()
        is_believed = believed(stamp, wall_us, self._drift_max_us)
        if is_believed:
            self.last = max(self.last, stamp)
        elif not self._apart:
            log.warning("clock.apart", ahead_s=round((stamp.us - wall_us) / 1_000_000))
        self._apart = not is_believed
