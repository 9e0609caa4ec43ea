"""Ports of a local cluster: free when it is created, kept from then on."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Iterator

from holdfast.model.errors import ConfigurationError, EnvironmentFault

PORTS_VARIABLE = "HOLDFAST_PORTS"
"""``first-last``: where the ports of new clusters are sought instead, all of them."""

WISHED_PORT = 6432
"""Where the proxy takes writes if nobody asked for another port; the next one takes reads."""

_RANGE = range(20_000, 26_000)
"""Below the ephemeral ports of Linux (32768 and up), so that no outgoing connection takes a kept port meanwhile."""


def port_range() -> range:
    """Where free ports are sought; raises ConfigurationError if HOLDFAST_PORTS names no range."""
    asked = os.environ.get(PORTS_VARIABLE)
    if not asked:
        return _RANGE
    first, _, last = asked.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65_535):
        raise ConfigurationError(f"{PORTS_VARIABLE}={asked}: write it as FIRST-LAST, for example 20000-20099")
    return range(int(first), int(last) + 1)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(seed: int, taken: Iterable[int] = ()) -> Iterator[int]:
    """Free ports in an order that ``seed`` fixes, each only once and none of ``taken``.

    Raises EnvironmentFault when there are no more.
    """
    used = set(taken)
    ports = port_range()
    for port in random.Random(seed).sample(ports, len(ports)):
        if port not in used and is_free(port):
            yield port
    raise EnvironmentFault(
        f"not enough free ports between {ports[0]} and {ports[-1]}: end what listens there, or name another range in "
        f"{PORTS_VARIABLE}"
    )


def proxy_ports(wish: int | None, spare: Iterator[int]) -> tuple[int, int]:
    """The ports for writes and for reads: ``wish`` and the next one if they are free, else spare ones."""
    if wish is None and PORTS_VARIABLE in os.environ:
        return next(spare), next(spare)
    first = WISHED_PORT if wish is None else wish
    if is_free(first) and is_free(first + 1):
        return first, first + 1
    if wish is not None and is_free(first):
        return first, next(spare)
    return next(spare), next(spare)
