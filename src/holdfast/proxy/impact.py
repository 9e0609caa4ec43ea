"""What clients met while something was wrong, told to the journal once it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from holdfast.proxy.lane import Lane

LOOK_S = 1.0
"""Between two looks at the counters; an account is closed when two in a row find nothing new."""
WORTH_MS = 100
"""A wait that is shorter, and did nobody harm, is not worth an entry."""


@dataclass(frozen=True, slots=True)
class Toll:
    """What the ports counted: statements that had to wait or were refused, and what became of those under way."""

    held: int = 0
    refused: int = 0
    unknown: int = 0
    undone: int = 0
    classes: Mapping[str, Toll] = field(default_factory=dict)
    """The same by the class of the session, without further classes."""

    @classmethod
    def of(cls, lanes: Collection[Lane]) -> Toll:
        """Everything since the start."""
        classes: dict[str, Toll] = {}
        for name, counted in ((name, c) for lane in lanes for name, c in lane.counters.classes.items()):
            more = cls(counted.held, counted.refused, counted.unknown, counted.undone)
            classes[name] = classes.get(name, cls())._changed(more, 1)
        return replace(_sum(classes.values()), classes=classes)

    def since(self, before: Toll) -> Toll:
        """What came on top."""
        classes = {name: toll.since(before.classes.get(name, Toll())) for name, toll in self.classes.items()}
        met = {name: toll for name, toll in classes.items() if toll != Toll()}
        return replace(self._changed(before, -1), classes=met)

    def _changed(self, by: Toll, sign: int) -> Toll:
        return Toll(
            self.held + sign * by.held,
            self.refused + sign * by.refused,
            self.unknown + sign * by.unknown,
            self.undone + sign * by.undone,
        )

    @property
    def did_harm(self) -> bool:
        """Whether something failed."""
        return bool(self.refused or self.unknown or self.undone)

    def told(self, longest_ms: Mapping[str, int]) -> dict[str, JsonValue]:
        """What the journal says; ``longest_ms`` is the longest wait of one statement of each class."""
        classes: dict[str, JsonValue] = {
            name: {**_figures(toll), "longest_ms": longest_ms.get(name, 0)} for name, toll in self.classes.items()
        }
        return {"longest_ms": max(longest_ms.values(), default=0), **_figures(self), "classes": classes}


def _figures(toll: Toll) -> dict[str, JsonValue]:
    return {"held": toll.held, "refused": toll.refused, "unknown": toll.unknown, "undone": toll.undone}


def _sum(tolls: Iterable[Toll]) -> Toll:
    total = Toll()
    for toll in tolls:
        total = total._changed(toll, 1)
    return total


Tell = Callable[[Toll, Mapping[str, int]], None]
"""Told the toll, and the longest wait of one statement of each class in milliseconds."""


class Impact:
    """Keeps the account of both ports. Clients notice nothing of it: it looks at counters now and then."""

    def __init__(self, lanes: Collection[Lane], tell: Tell) -> None:
        self._lanes = lanes
        self._tell = tell
        self._told = Toll()
        self._seen = Toll()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Tell what has come on top since the last time, unless it still goes on."""
        before, self._seen = self._seen, Toll.of(self._lanes)
        if self._seen == before and not any(lane.held for lane in self._lanes):
            self.close()

    def close(self) -> None:
        """Tell what has come on top, also if it still goes on: nobody will look again."""
        self._seen = Toll.of(self._lanes)
        if self._seen == self._told:
            return
        toll, self._told = self._seen.since(self._told), self._seen
        longest_ms: dict[str, int] = {}
        for name, waited_ms in ((n, ms) for lane in self._lanes for n, ms in lane.counters.take_longest_ms().items()):
            longest_ms[name] = max(waited_ms, longest_ms.get(name, 0))
        if toll.did_harm or max(longest_ms.values(), default=0) >= WORTH_MS:
            self._tell(toll, longest_ms)
