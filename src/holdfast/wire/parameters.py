"""The parameters that a server reports, compared at a glance.

A session that is given a shared connection must know whether the server there reports what the client was told. The
two are nearly always equal, and comparing a dozen names and values each time costs more than most of a statement does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any


class Parameters(dict):  # type: ignore[type-arg]
    """Names and values. They change by item, by ``update`` and by ``|=``, and in no other way."""

    __slots__ = ("stamp",)

    def __init__(self, known: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(known)
        self.stamp: object | None = None
        """One for all that are equal, once they were compared and until they change."""

    def __setitem__(self, name: str, value: str) -> None:
        self.stamp = None
        super().__setitem__(name, value)

    def update(self, *known: Any, **named: str) -> None:
        """As of any dictionary."""
        self.stamp = None
        super().update(*known, **named)

    def __ior__(self, known: Any) -> Parameters:  # type: ignore[misc]
        self.update(known)
        return self

    def are_those(self, other: Parameters) -> bool:
        """Whether the two are equal; where the stamps are, nobody needs to ask."""
        if self.stamp is None:
            self.stamp = _stamp_of(frozenset(self.items()))
        if other.stamp is None:
            other.stamp = _stamp_of(frozenset(other.items()))
        return self.stamp is other.stamp or self == other


@lru_cache(maxsize=256)
def _stamp_of(items: frozenset[tuple[str, str]]) -> object:
    """One for all that are equal, as long as it is remembered."""
    return object()
