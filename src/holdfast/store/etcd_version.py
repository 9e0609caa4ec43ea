"""Which etcd will do: one place for the client and for whoever starts a server."""

from __future__ import annotations

import re

Version = tuple[int, int, int]

MINIMUM: Version = (3, 4, 0)
"""The first with the /v3 gateway paths, progress requests and non-blocking reads that the client uses."""

_DURABLE_FROM: dict[tuple[int, int], Version] = {(3, 4): (3, 4, 22), (3, 5): (3, 5, 6)}
"""Older ones of these series can lose or diverge in data when they are killed (etcd's own advice is to upgrade)."""

_NUMBER = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def parse_version(text: str) -> Version | None:
    """The version in ``3.5.1``, ``3.6.0-rc.1`` or the output of ``etcd --version``; None if there is none."""
    found = _NUMBER.search(text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def dotted(version: Version) -> str:
    """The usual way to write it."""
    return ".".join(map(str, version))


def is_supported(version: Version) -> bool:
    """Whether Holdfast works with this etcd at all."""
    return version >= MINIMUM


def survives_kill(version: Version) -> bool:
    """Whether this etcd keeps its data consistent when it is killed."""
    return version >= _DURABLE_FROM.get(version[:2], MINIMUM)
