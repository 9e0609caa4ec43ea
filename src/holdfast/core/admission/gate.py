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
from dataclasses import dataclass
from typing import Any, Final

from holdfast.core.admission.quota import Quota, Tenant
from holdfast.model.traffic import NORMAL, TrafficClass

LONG_MS: Final = 1000
"""A statement or transaction that has been inside for so long gives its place to others and is counted apart, while
there are fewer of them than may be inside: otherwise a few reports would keep a small gate shut for minutes."""

RETRY_MIN_MS: Final = 200
RETRY_MAX_MS: Final = 10_000
"""Between which bounds a refused client is told to come back, before jitter."""

TENANTS_SWEPT: Final = 1000
"""From so many users or databases of a class on, those that have all of their quotas are forgotten."""

DURATIONS_MAX: Final = 1000
"""Of the last statements it is kept how long they were inside."""


class Permit:
    """One session's leave to have a statement, or a transaction, in the database."""

    __slots__ = ("counted", "holder", "is_in", "since_ms", "tenant", "traffic_class")

    def __init__(self, traffic_class: str = NORMAL, *, tenant: str = "") -> None:
        self.traffic_class = traffic_class
        self.is_in = False
        self.since_ms = 0.0
        """Since when it has been in, or has waited."""
        self.holder: Any = None
        """Whose it is; nothing here looks at it."""
        self.tenant = tenant
        """The user or the database that a quota is for; empty if it is for the whole class."""
        self.counted: Tenant | None = None
        """Whose quota it uses up while it is in."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a statement is not let in, and when to come back."""

    traffic_class: str
    waiting: int
    waited_ms: int | None
    """None: it did not wait, because too many did."""
    retry_ms: int
    quota: str | None = None
    """The quota that is used up, in words; None: it is the database that is busy."""


class Line:
    """The statements of one class. ``short`` (in the order in which they came) and ``long`` are inside."""

    __slots__ = ("long", "quota", "refused", "settings", "short", "tenants", "turns", "waiting")

    def __init__(self, settings: TrafficClass) -> None:
        self.settings = settings
        self.waiting: dict[Permit, None] = {}
        self.short: dict[Permit, None] = {}
        self.long: set[Permit] = set()
        self.turns = 0.0
        """Places it was given, divided by its share."""
        self.refused = 0
        self.quota = Quota.of(settings)
        self.tenants: dict[str, Tenant] = {}
        """Who has a quota, and has used some of it."""

    @property
    def inside(self) -> int:
        """Its statements in the database."""
        return len(self.short) + len(self.long)

    def settings_are(self, settings: TrafficClass) -> None:
        """Other ones are in force; those who wait, wait by them."""
        self.settings, self.quota = settings, Quota.of(settings)
        for tenant in self.tenants.values():
            tenant.waiting.clear()
        for permit in self.waiting if self.quota is not None else ():
            self.tenant_of(permit, permit.since_ms).waiting[permit] = None

    def tenant_of(self, permit: Permit, now_ms: float) -> Tenant:
        """Whose quota a statement uses up."""
        tenant = self.tenants.get(permit.tenant)
        if tenant is None:
            if len(self.tenants) >= TENANTS_SWEPT:
                for name in [n for n, t in self.tenants.items() if t.is_idle(self.quota, now_ms)]:
                    del self.tenants[name]
            capacity = 0.0 if self.quota is None else self.quota.capacity
            tenant = self.tenants[permit.tenant] = Tenant(permit.tenant, capacity, now_ms)
        return tenant

    def lacks(self, permit: Permit, now_ms: float) -> str | None:
        """What of its quota is used up, in words; None if nothing is, or it has none."""
        return None if self.quota is None else self.tenant_of(permit, now_ms).lacks(self.quota, now_ms)

    def pressing(self, now_ms: float) -> int:
        """How many wait for the database, not for a quota of their own."""
        if self.quota is None:
            return len(self.waiting)
        return sum(len(t.waiting) for t in self.tenants.values() if t.lacks(self.quota, now_ms) is None)

    def first(self, now_ms: float) -> Permit | None:
        """Who came first of those that wait within their quotas."""
        if self.quota is None:
            return next(iter(self.waiting), None)
        heads = [
            next(iter(tenant.waiting))
            for tenant in self.tenants.values()
            if tenant.waiting and tenant.lacks(self.quota, now_ms) is None
        ]
        return min(heads, key=lambda permit: permit.since_ms, default=None)


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
                self.lines[name].settings_are(settings)
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

    def pressing(self, now_ms: float) -> int:
        """Those of them that wait for the database, not for a quota of their own."""
        return sum(line.pressing(now_ms) for line in self.lines.values())

    def token_in_ms(self, now_ms: float) -> float | None:
        """When the rate of a quota lets the next statement in; None if nobody waits for that."""
        times_ms = [
            in_ms
            for line in self.lines.values()
            if line.quota is not None
            for tenant in line.tenants.values()
            if tenant.waiting and (in_ms := tenant.token_in_ms(line.quota, now_ms)) is not None
        ]
        return min(times_ms, default=None)

    def take_peak(self) -> int:
        """The most statements that were inside at once since this was last asked."""
        peak, self.peak = max(self.peak, self.inside), self.inside
        return peak

    # going in and out

    def enter(self, permit: Permit, now_ms: float, *, must: bool = False) -> bool:
        """Whether a statement goes in at once; one that ``must`` does in any case, and counts."""
        line = self._line(permit)
        if line.quota is not None and not must:
            tenant = line.tenant_of(permit, now_ms)
            if tenant.waiting or tenant.lacks(line.quota, now_ms) is not None:
                return False
        if self.limit is not None and not must:
            if line.waiting and (line.quota is None or line.first(now_ms) is not None):
                return False
            if not self._has_room(line, self.limit, now_ms):
                return False
        self._let_in(permit, line, now_ms)
        return True

    def enter_freely(self, permit: Permit, now_ms: float) -> bool:
        """The same where nothing bounds the class or all of them; False: somebody may have to wait, so ask `enter`."""
        line = self.lines.get(permit.traffic_class) or self._line(permit)
        if self.limit is not None or line.quota is not None:
            return False
        permit.is_in = True
        permit.since_ms = now_ms
        line.short[permit] = None
        self._short += 1
        if self._short + self._long > self.peak:
            self.peak = self._short + self._long
        return True

    def leave(self, permit: Permit, now_ms: float) -> None:
        """A statement that was inside has ended."""
        self.done += 1
        self.left_ms = now_ms
        self.durations_ms.append(now_ms - permit.since_ms)
        line = self.lines[permit.traffic_class]
        if permit.counted is not None or permit not in line.short:
            self.give_back(permit)
            return
        permit.is_in = False
        del line.short[permit]
        self._short -= 1

    def give_back(self, permit: Permit) -> None:
        """A place is free again that was not used, or whose server was lost: how long it was taken says nothing."""
        permit.is_in = False
        if permit.counted is not None:
            permit.counted.inside -= 1
            permit.counted = None
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
        over = line.lacks(permit, now_ms) is not None  # its own line, then: it keeps nobody else out
        ahead = len(line.tenant_of(permit, now_ms).waiting) if over else line.pressing(now_ms)
        if ahead >= line.settings.queue_max:
            return self._refuse(permit, line, now_ms, None, jitter)
        if not line.waiting:
            others = [other.turns for other in self.lines.values() if other.waiting]
            line.turns = max([line.turns, min(others, default=line.turns)])
        if not self.waiting:
            self._since_ms, self._done_then = now_ms, self.done
        permit.since_ms = now_ms
        line.waiting[permit] = None
        if line.quota is not None:
            line.tenant_of(permit, now_ms).waiting[permit] = None
        self.waited += not over
        return None

    def withdraw(self, permit: Permit) -> None:
        """Whoever waited does not want in any more."""
        line = self.lines.get(permit.traffic_class)
        if line is not None:
            _out_of_line(line, permit)

    def let_in(self, now_ms: float) -> Iterator[Permit]:
        """Let in whoever can go in now."""
        while (going := self._next(now_ms)) is not None:
            line, permit = going
            _out_of_line(line, permit)
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
                _out_of_line(line, permit)
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
        if line.quota is not None:
            permit.counted = line.tenant_of(permit, now_ms)
            permit.counted.begin(line.quota, now_ms)
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

    def _next(self, now_ms: float) -> tuple[Line, Permit] | None:
        waiting = [line for line in self.lines.values() if line.waiting]
        if waiting and self.limit is not None:
            self._set_aside(self.limit, now_ms)
            waiting = [line for line in waiting if self._is_free(line, self.limit)]
        ready = [(line, permit) for line in waiting if (permit := line.first(now_ms)) is not None]
        return min(ready, key=lambda going: _order(going[0]), default=None)

    def _refuse(self, permit: Permit, line: Line, now_ms: float, waited_ms: int | None, jitter: float) -> Refusal:
        line.refused += 1
        lacks = line.lacks(permit, now_ms)
        if lacks is None or line.quota is None:
            ahead = len(line.waiting)
            return Refusal(permit.traffic_class, ahead, waited_ms, self._retry_ms(ahead, now_ms, jitter))
        tenant = line.tenant_of(permit, now_ms)
        ahead, per_s = len(tenant.waiting), line.quota.statements_per_s
        wait_ms = self._pace_ms(ahead, now_ms) if per_s is None else (ahead + 1) * 1000 / per_s
        retry_ms = round(min(max(wait_ms, RETRY_MIN_MS), RETRY_MAX_MS) * (0.5 + jitter))
        whose = f"{line.quota.each} {tenant.name}" if tenant.name else "its class"
        return Refusal(permit.traffic_class, ahead, waited_ms, retry_ms, f"{whose} may have {lacks}")

    def _retry_ms(self, ahead: int, now_ms: float, jitter: float) -> int:
        """When those ahead will have gone in, at the pace seen while somebody waited; spread from 0.5 to 1.5 times."""
        wait_ms = min(max(self._pace_ms(ahead, now_ms), RETRY_MIN_MS), RETRY_MAX_MS)
        return round(wait_ms * (0.5 + jitter))

    def _pace_ms(self, ahead: int, now_ms: float) -> float:
        done = self.done - self._done_then
        return ahead * ((now_ms - self._since_ms) / done if done else RETRY_MIN_MS)


def _out_of_line(line: Line, permit: Permit) -> None:
    line.waiting.pop(permit, None)
    tenant = line.tenants.get(permit.tenant)
    if tenant is not None:
        tenant.waiting.pop(permit, None)


def _order(line: Line) -> tuple[float, float, int]:
    """Whose turn it is: the least of these."""
    return len(line.short) / line.settings.share, line.turns, -line.settings.share


def _cap(line: Line, limit: int) -> int:
    """Places that a class may have at most; always one."""
    return math.ceil(limit * line.settings.most_percent / 100)
