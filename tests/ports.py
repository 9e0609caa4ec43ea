"""Ports for the servers of the tests.

Every process that runs tests has a slot of ports to itself, so that two of them, or two suites on one machine, never
draw the same one. The clusters that tests make take theirs from it, too.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator

from holdfast.local.ports import PORTS_VARIABLE, free_ports

_FIRST, _SIZE, _COUNT = 20_000, 400, 30


def _claim_slot() -> socket.socket | None:
    """A free slot in the environment; it is ours until the socket closes, also if we are killed."""
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
        os.environ[PORTS_VARIABLE] = f"{first}-{first + _SIZE - 1}"
        return lock
    return None


def _endless() -> Iterator[int]:
    while True:
        ports = free_ports(secrets.randbits(32))
        for _ in range(_SIZE // 2):
            yield next(ports)


_slot = _claim_slot()
_ports = _endless()


def free_port() -> int:
    """A free port, which comes again only after many others; none that an outgoing connection could take meanwhile."""
    return next(_ports)
