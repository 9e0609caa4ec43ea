"""The course of an incident as clients met it: what was done, waited and failed, one short step after the other. Pure.

A proxy looks at its counters again and again and keeps the looks of the last minutes. When something is over it tells
the steps from shortly before it began; those of several proxies are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from pydantic import JsonValue

LEAD_MS: Final = 2000
"""How much of the time before the first trouble is shown: what was usual."""
STEPS_MAX: Final = 120
"""Of one course; a longer time has longer steps."""


class Look(NamedTuple):
    """What a proxy had counted at a time (Unix time, milliseconds): ``done`` and ``failed`` since its start."""

    at_ms: float
    done: int
    failed: int
    held: int
    """Statements that waited then."""


@dataclass(frozen=True, slots=True)
class Course:
    """Steps of ``step_ms`` from ``since_ms`` on: what ended and failed in each, and the most that waited."""

    since_ms: float
    step_ms: int
    done: tuple[int, ...]
    failed: tuple[int, ...]
    held: tuple[int, ...]

    def to_detail(self) -> dict[str, JsonValue]:
        """For an entry of the journal."""
        numbers: dict[str, list[JsonValue]] = {"done": [*self.done], "failed": [*self.failed], "held": [*self.held]}
        return {"since_ms": round(self.since_ms), "step_ms": self.step_ms, **numbers}

    @classmethod
    def from_detail(cls, detail: JsonValue) -> Course | None:
        """Read what `to_detail` gave; None for anything else."""
        if not isinstance(detail, dict):
            return None
        since_ms, step_ms = detail.get("since_ms"), detail.get("step_ms")
        rows = [_counts(detail.get(name)) for name in ("done", "failed", "held")]
        if not isinstance(since_ms, int | float) or not isinstance(step_ms, int) or not 0 < step_ms <= 3_600_000:
            return None
        done, failed, held = rows
        if not len(done) == len(failed) == len(held) <= STEPS_MAX:
            return None
        return cls(float(since_ms), step_ms, done, failed, held)


def _counts(values: JsonValue) -> tuple[int, ...]:
    found = values if isinstance(values, list) else []
    return tuple(max(0, int(v)) for v in found if isinstance(v, int | float))


def course_of(looks: Sequence[Look]) -> Course | None:
    """The course of what is in ``looks``, oldest first, from shortly before the first trouble; None without any."""
    troubled = [now.at_ms for before, now in pairwise(looks) if now.held or before.held or now.failed > before.failed]
    if not troubled:
        return None
    shown = [look for look in looks if look.at_ms >= troubled[0] - LEAD_MS]
    pairs = list(pairwise(shown))
    if not pairs:
        return None
    usual_ms = max(1, round((shown[-1].at_ms - shown[0].at_ms) / len(pairs)))
    step_ms = usual_ms * -(-len(pairs) // STEPS_MAX)
    steps = _Steps(shown[0].at_ms, step_ms, min(STEPS_MAX, int((shown[-1].at_ms - shown[0].at_ms) // step_ms) + 1))
    for before, now in pairs:
        steps.add(before.at_ms, now.done - before.done, now.failed - before.failed, max(before.held, now.held))
    return steps.course()


def together(courses: Iterable[Course]) -> Course | None:
    """The course of several proxies, or of one proxy's several entries; None if there are none."""
    known = [course for course in courses if course.done]
    if not known:
        return None
    since_ms = min(course.since_ms for course in known)
    until_ms = max(course.since_ms + course.step_ms * len(course.done) for course in known)
    widest_ms = max(course.step_ms for course in known)
    step_ms = max(widest_ms, -int(-(until_ms - since_ms) // STEPS_MAX))
    total = _Steps(since_ms, step_ms, min(STEPS_MAX, max(1, -int(-(until_ms - since_ms) // step_ms))))
    for course in known:
        own = _Steps(total.since_ms, total.step_ms, len(total.done))
        for n, (done, failed, held) in enumerate(zip(course.done, course.failed, course.held, strict=True)):
            own.add(course.since_ms + n * course.step_ms, done, failed, held)
        total.add_all(own)
    return total.course()


class _Steps:
    """Steps that are being filled."""

    def __init__(self, since_ms: float, step_ms: int, count: int) -> None:
        self.since_ms = since_ms
        self.step_ms = step_ms
        self.done = [0] * count
        self.failed = [0] * count
        self.held = [0] * count

    def add(self, at_ms: float, done: int, failed: int, held: int) -> None:
        """What happened at a time; what lies beyond the last step is counted in it."""
        n = min(len(self.done) - 1, max(0, int((at_ms - self.since_ms) // self.step_ms)))
        self.done[n] += max(0, done)
        self.failed[n] += max(0, failed)
        self.held[n] = max(self.held[n], held)

    def add_all(self, other: _Steps) -> None:
        """The same steps of another proxy."""
        for n in range(len(self.done)):
            self.done[n] += other.done[n]
            self.failed[n] += other.failed[n]
            self.held[n] += other.held[n]

    def course(self) -> Course:
        """What was filled."""
        return Course(self.since_ms, self.step_ms, tuple(self.done), tuple(self.failed), tuple(self.held))
