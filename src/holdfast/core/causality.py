"""Hybrid logical clocks: an event that was caused by another one comes after it, whatever the hosts' clocks say.

Kulkarni, Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks and Consistent Snapshots in Globally Distributed
Databases" (OPODIS 2014). Each host keeps the newest stamp that it gave or saw. It gives the wall clock's time if that
is newer, else the same time with a higher count. What it sends carries its newest stamp; who receives it remembers
the newer one.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.model.event import Event, Stamp

DRIFT_MAX_US = 24 * 3600 * 1_000_000
"""A stamp further ahead of the own wall clock is not believed, or one host in the year 2100 took everybody there."""


def next_stamp(last: Stamp, wall_us: int) -> Stamp:
    """For something that happens now: later than ``last``, at the wall clock's time if that is later, too."""
    return Stamp(wall_us) if wall_us > last.us else Stamp(last.us, last.count + 1)


def believed(seen: Stamp, wall_us: int, drift_max_us: int = DRIFT_MAX_US) -> bool:
    """Whether a stamp from elsewhere is near enough to the own wall clock to be followed."""
    return seen.us - wall_us <= drift_max_us


def in_order(events: Iterable[Event]) -> list[Event]:
    """Entries of all writers, causes before what they led to; of the same time, each writer's in its own order."""
    return sorted(events, key=lambda e: (e.order, e.source, e.link.number if e.link is not None else 0))
