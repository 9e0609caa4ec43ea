"""What clients met while something was wrong, told to the journal once it is over."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from holdfast.core.course import Course, Look, course_of
from holdfast.proxy.lane import Lane

SAMPLE_S = 0.1
"""Between two looks at the counters."""
REST_LOOKS = 10
"""An account is closed when nothing is new for so many looks."""
SAMPLES_MAX = 1200
"""Two minutes: of a longer trouble the last of it is told."""
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
    def failed(self) -> int:
        """Statements that were refused, and transactions that were cut off."""
        return self.refused + self.unknown + self.undone

    def told(self, longest_ms: Mapping[str, int], course: Course | None) -> dict[str, JsonValue]:
        """What the journal says; ``longest_ms`` is the longest wait of one statement of each class."""
        classes: dict[str, JsonValue] = {
            name: {**_figures(toll), "longest_ms": longest_ms.get(name, 0)} for name, toll in self.classes.items()
        }
        longest = max(longest_ms.values(), default=0)
        said: dict[str, JsonValue] = {"longest_ms": longest, **_figures(self), "classes": classes}
        return said if course is None else {**said, "course": course.to_detail()}


def _figures(toll: Toll) -> dict[str, JsonValue]:
    return {"held": toll.held, "refused": toll.refused, "unknown": toll.unknown, "undone": toll.undone}


def _sum(tolls: Iterable[Toll]) -> Toll:
    total = Toll()
    for toll in tolls:
        total = total._changed(toll, 1)
    return total


Tell = Callable[[Toll, Mapping[str, int], Course | None], None]
"""Told the toll, the longest wait of one statement of each class in milliseconds, and how it went."""


class Impact:
    """Keeps the account of both ports. Clients notice nothing of it: it looks at counters now and then."""

    def __init__(self, lanes: Collection[Lane], tell: Tell) -> None:
        self._lanes = lanes
        self._tell = tell
        self._told = Toll()
        self._seen = Toll()
        self._looks: deque[Look] = deque(maxlen=SAMPLES_MAX)

    async def run(self) -> None:
        """Look, for ever."""
        rested = 0
        while True:
            await asyncio.sleep(SAMPLE_S)
            rested = rested + 1 if self.look() else 0
            if rested >= REST_LOOKS:
                rested = 0
                self.close()

    def look(self) -> bool:
        """Count; returns whether all is quiet."""
        before, self._seen = self._seen, Toll.of(self._lanes)
        held = sum(lane.held for lane in self._lanes)
        done = sum(lane.admission.gate.done for lane in self._lanes)
        self._looks.append(Look(time.time() * 1000, done, self._seen.failed, held))
        return self._seen == before and not held

    def close(self) -> None:
        """Tell what has come on top since the last time, also if it still goes on."""
        self.look()
        if self._seen == self._told:
            return
        toll, self._told = self._seen.since(self._told), self._seen
        longest_ms: dict[str, int] = {}
        for name, waited_ms in ((n, ms) for lane in self._lanes for n, ms in lane.counters.take_longest_ms().items()):
            longest_ms[name] = max(waited_ms, longest_ms.get(name, 0))
        if toll.failed or max(longest_ms.values(), default=0) >= WORTH_MS:
            self._tell(toll, longest_ms, course_of(self._looks))
        self._looks = deque(list(self._looks)[-REST_LOOKS:], SAMPLES_MAX)  # quiet ones: what was before is told
