"""Ports for the servers of the tests.

Every process that runs tests has a slot of ports to itself, so that two of them, or two suites on one machine, never
draw the same one, and all slots lie beyond the ports of clusters that people make meanwhile. The clusters that tests
make take theirs from it, too, each from a window of its own: what one of them keeps is free while a process is killed
and started again, and must not be drawn then.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Iterator

from holdfast.local.ports import PORTS_VARIABLE, is_free

_FIRST, _SIZE, _COUNT = 26_000, 400, 15
_WINDOW = 60
"""For one cluster; four of these are the second part of a slot, single ports come from the first."""


def _claim_slot() -> tuple[socket.socket | None, range]:
    """A free slot; it is ours until the socket closes, also if we are killed."""
    numbers = list(range(_COUNT))
    secrets.SystemRandom().shuffle(numbers)
    for number in numbers:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0holdfast-test-ports-{number}")  # abstract: one for each network namespace, as ports are
        except OSError:
            lock.close()
            continue
        first = _FIRST + number * _SIZE
        return lock, range(first, first + _SIZE)
    first = _FIRST + numbers[0] * _SIZE
    return None, range(first, first + _SIZE)


def _windows(ports: range) -> Iterator[range]:
    while True:
        for first in range(ports[0], ports[-1] - _WINDOW + 2, _WINDOW):
            yield range(first, first + _WINDOW)


_lock, _slot = _claim_slot()
_single = itertools.cycle(secrets.SystemRandom().sample(_slot[: -4 * _WINDOW], _SIZE - 4 * _WINDOW))
_of_clusters = _windows(_slot[-4 * _WINDOW :])


def free_port() -> int:
    """A free port, which comes again only after many others; none that an outgoing connection could take meanwhile."""
    return next(filter(is_free, _single))


def next_window() -> None:
    """The cluster that is made next, and its processes, draw from another window than the last three."""
    window = next(_of_clusters)
    os.environ[PORTS_VARIABLE] = f"{window[0]}-{window[-1]}"


next_window()
