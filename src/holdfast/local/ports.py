"""Ports of a local cluster: free when it is created, kept from then on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Iterator

WISHED_PORT = 6432
"""Where the proxy takes writes if nobody asked for another port; the next one takes reads."""

_RANGE = range(20_000, 32_000)
"""Below the ephemeral ports of Linux (32768 and up), so that no outgoing connection takes a kept port meanwhile."""


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
    """Free ports in an order that ``seed`` fixes, each only once and none of ``taken``."""
    used = set(taken)
    for port in random.Random(seed).sample(_RANGE, len(_RANGE)):
        if port not in used and is_free(port):
            yield port


def proxy_ports(wish: int | None, spare: Iterator[int]) -> tuple[int, int]:
    """The ports for writes and for reads: ``wish`` and the next one if they are free, else spare ones."""
    first = WISHED_PORT if wish is None else wish
    if is_free(first) and is_free(first + 1):
        return first, first + 1
    if wish is not None and is_free(first):
        return first, next(spare)
    return next(spare), next(spare)
