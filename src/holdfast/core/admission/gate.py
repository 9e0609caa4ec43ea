"""Who may go into the database now, who waits, and who is refused: one gate for each port of a proxy.

Pure: every call takes the time, in milliseconds of any steady clock, and a refusal takes its jitter.

When classes compete for a free place, the one that has the fewest in relation to its share gets it (max-min fairness,
Bertsekas and Gallager, Data Networks, 6.5.2); among equals the one that was let in least in relation to its share
(stride scheduling, Waldspurger and Weihl 1995). So a class gets nothing above its share while another waits for less,
and none waits for ever. Within a class the order is that of arrival.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from holdfast.model.traffic import NORMAL, TrafficClass

LONG_MS: Final = 1000
"""A statement or transaction that has been inside for so long gives its place to others and is counted apart, while
there are fewer of them than may be inside: otherwise a few reports would keep a small gate shut for minutes."""

RETRY_MIN_MS: Final = 200
RETRY_MAX_MS: Final = 10_000
"""Between which bounds a refused client is told to come back, before jitter."""

DURATIONS_MAX: Final = 1000
"""Of the last statements it is kept how long they were inside."""


@dataclass(slots=True, eq=False)
class Permit:
    """One session's leave to have a statement, or a transaction, in the database."""

    traffic_class: str = NORMAL
    is_in: bool = False
    since_ms: float = 0
    """Since when it has been in, or has waited."""
    holder: Any = None
    """Whose it is; nothing here looks at it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a statement is not let in, and when to come back."""

    traffic_class: str
    waiting: int
    waited_ms: int | None
    """None: it did not wait, because too many did."""
    retry_ms: int


@dataclass(slots=True)
class Line:
    """The statements of one class. ``short`` (in the order in which they came) and ``long`` are inside."""

    settings: TrafficClass
    waiting: dict[Permit, None] = field(default_factory=dict)
    short: dict[Permit, None] = field(default_factory=dict)
    long: set[Permit] = field(default_factory=set)
    turns: float = 0
    """Places it was given, divided by its share."""
    refused: int = 0

    @property
    def inside(self) -> int:
        """Its statements in the database."""
        return len(self.short) + len(self.long)


class Gate:
    """Lets at most ``limit`` statements in at once, and beside them as many that turned out to be long."""

    def __init__(self, classes: Mapping[str, TrafficClass], long_ms: float = LONG_MS) -> None:
        self.long_ms = long_ms
        self.limit: int | None = None
        """None: everybody goes in."""
        self.waited = 0
        """Statements that could not go in at once, since the start."""
        self.peak = 0
        """The most statements that were inside at once, since `take_peak`."""
        self.durations_ms: deque[float] = deque(maxlen=DURATIONS_MAX)
        """How long the last statements were inside, since it was last cleared."""
        self._short = 0
        self._long = 0
        self.done = 0
        """Statements that have ended, since the start."""
        self.left_ms = 0.0
        """When the last of them ended."""
        self._since_ms = 0.0
        self._done_then = 0
        self.lines: dict[str, Line] = {}
        self.classes_are(classes)

    def classes_are(self, classes: Mapping[str, TrafficClass]) -> None:
        """Other classes are in force; who waits in one that is gone stays in line."""
        for name, settings in classes.items():
            if name in self.lines:
                self.lines[name].settings = settings
            else:
                self.lines[name] = Line(settings)
        for name in [n for n in self.lines if n not in classes]:
            line = self.lines[name]
            if not (line.waiting or line.inside):
                del self.lines[name]

    @property
    def inside(self) -> int:
        """Statements in the database."""
        return self._short + self._long

    @property
    def short(self) -> int:
        """Those of them that take a place within the limit: not the long ones."""
        return self._short

    @property
    def is_full(self) -> bool:
        """Whether the limit keeps others out now."""
        return self.limit is not None and self._short >= self.limit

    @property
    def waiting(self) -> int:
        """Statements that wait."""
        return sum(len(line.waiting) for line in self.lines.values())

    def take_peak(self) -> int:
        """The most statements that were inside at once since this was last asked."""
        peak, self.peak = max(self.peak, self.inside), self.inside
        return peak

    # going in and out

    def enter(self, permit: Permit, now_ms: float, *, must: bool = False) -> bool:
        """Whether a statement goes in at once; one that ``must`` does in any case, and counts."""
        line = self._line(permit)
        if self.limit is not None and not must and (line.waiting or not self._has_room(line, self.limit, now_ms)):
            return False
        self._let_in(permit, line, now_ms)
        return True

    def leave(self, permit: Permit, now_ms: float) -> None:
        """A statement that was inside has ended."""
        self.done += 1
        self.left_ms = now_ms
        self.durations_ms.append(now_ms - permit.since_ms)
        self.give_back(permit)

    def give_back(self, permit: Permit) -> None:
        """A place is free again that was not used, or whose server was lost: how long it was taken says nothing."""
        permit.is_in = False
        line = self.lines[permit.traffic_class]
        if permit in line.short:
            del line.short[permit]
            self._short -= 1
        else:
            line.long.remove(permit)
            self._long -= 1

    def wait(self, permit: Permit, now_ms: float, jitter: float) -> Refusal | None:
        """A statement that `enter` did not let in gets in line, or is refused; ``jitter`` is from 0 to 1."""
        line = self._line(permit)
        if len(line.waiting) >= line.settings.queue_max:
            return self._refuse(permit, line, now_ms, None, jitter)
        if not line.waiting:
            others = [other.turns for other in self.lines.values() if other.waiting]
            line.turns = max([line.turns, min(others, default=line.turns)])
        if not self.waiting:
            self._since_ms, self._done_then = now_ms, self.done
        permit.since_ms = now_ms
        line.waiting[permit] = None
        self.waited += 1
        return None

    def withdraw(self, permit: Permit) -> None:
        """Whoever waited does not want in any more."""
        line = self.lines.get(permit.traffic_class)
        if line is not None:
            line.waiting.pop(permit, None)

    def let_in(self, now_ms: float) -> Iterator[Permit]:
        """Let in whoever can go in now."""
        while (line := self._next(now_ms)) is not None:
            permit = next(iter(line.waiting))
            del line.waiting[permit]
            line.turns += 1 / line.settings.share
            self._let_in(permit, line, now_ms)
            yield permit

    def overdue(self, now_ms: float, jitter: float) -> Iterator[tuple[Permit, Refusal]]:
        """Those who have waited for as long as their class allows; they are out of the line."""
        for line in self.lines.values():
            while line.waiting:
                permit = next(iter(line.waiting))
                waited_ms = now_ms - permit.since_ms
                if waited_ms < line.settings.wait_max_ms:
                    break
                refusal = self._refuse(permit, line, now_ms, round(waited_ms), jitter)
                del line.waiting[permit]
                yield permit, refusal

    # rules

    def _line(self, permit: Permit) -> Line:
        line = self.lines.get(permit.traffic_class)
        if line is None:
            permit.traffic_class = NORMAL
            line = self.lines[NORMAL]
        return line

    def _let_in(self, permit: Permit, line: Line, now_ms: float) -> None:
        permit.is_in = True
        permit.since_ms = now_ms
        line.short[permit] = None
        self._short += 1
        if self._short + self._long > self.peak:
            self.peak = self._short + self._long

    def _has_room(self, line: Line, limit: int, now_ms: float) -> bool:
        if self._is_free(line, limit):
            return True
        self._set_aside(limit, now_ms)
        return self._is_free(line, limit)

    def _is_free(self, line: Line, limit: int) -> bool:
        return self._short < limit and len(line.short) < _cap(line, limit)

    def _set_aside(self, limit: int, now_ms: float) -> None:
        """Long ones give their places to others, while they are fewer than the limit, and of a class than its cap."""
        for line in self.lines.values():
            while line.short and self._long < limit and len(line.long) < _cap(line, limit):
                eldest = next(iter(line.short))
                if now_ms - eldest.since_ms < self.long_ms:
                    break
                del line.short[eldest]
                line.long.add(eldest)
                self._short -= 1
                self._long += 1

    def _next(self, now_ms: float) -> Line | None:
        waiting = [line for line in self.lines.values() if line.waiting]
        ready = waiting
        if waiting and self.limit is not None:
            self._set_aside(self.limit, now_ms)
            ready = [line for line in waiting if self._is_free(line, self.limit)]
        if not ready:
            return None
        return min(ready, key=lambda line: (len(line.short) / line.settings.share, line.turns, -line.settings.share))

    def _refuse(self, permit: Permit, line: Line, now_ms: float, waited_ms: int | None, jitter: float) -> Refusal:
        line.refused += 1
        ahead = len(line.waiting)
        return Refusal(permit.traffic_class, ahead, waited_ms, self._retry_ms(ahead, now_ms, jitter))

    def _retry_ms(self, ahead: int, now_ms: float, jitter: float) -> int:
        """When those ahead will have gone in, at the pace seen while somebody waited; spread from 0.5 to 1.5 times."""
        done = self.done - self._done_then
        pace_ms = (now_ms - self._since_ms) / done if done else RETRY_MIN_MS
        wait_ms = min(max(ahead * pace_ms, RETRY_MIN_MS), RETRY_MAX_MS)
        return round(wait_ms * (0.5 + jitter))


def _cap(line: Line, limit: int) -> int:
    """Places that a class may have at most; always one."""
    return math.ceil(limit * line.settings.most_percent / 100)
