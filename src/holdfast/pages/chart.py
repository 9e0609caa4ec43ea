"""The course of an incident as a picture: panels of steps below each other, with the same time from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from holdfast.core.course import Course
from holdfast.core.words import amount, duration, plural

WIDTH, HEIGHT = 720, 72
"""Of one panel, in its own units: the page stretches it."""


class Panel(NamedTuple):
    """One quantity. ``outline`` is the points of a polygon; ``says`` is for who cannot see it."""

    name: str
    peak: str
    outline: str
    says: str
    mark: str
    """The class of its style."""


class Mark(NamedTuple):
    """A moment: how far from the left, in units of the panels."""

    name: str
    x: float


class Chart(NamedTuple):
    """Panels, moments, and what is at both ends of the time."""

    panels: tuple[Panel, ...]
    marks: tuple[Mark, ...]
    begins: str
    ends: str


def chart_of(course: Course | None, began_at_ms: float, moments: Mapping[str, int | None]) -> Chart | None:
    """``began_at_ms`` is when the time counts from (Unix time), ``moments`` are names with offsets from then."""
    if course is None or not course.done:
        return None
    per_s = [count * 1000 / course.step_ms for count in course.done]
    step = duration(course.step_ms)
    panels = [
        _panel("done", "statements and transactions done", per_s, "a second"),
        _panel("held", "statements that waited", course.held, "at once"),
    ]
    if any(course.failed):
        said = f"in {step}; {plural(sum(course.failed), 'statement')} in all"
        panels.append(_panel("failed", "statements refused, cut off or undone", course.failed, said))
    whole_ms = course.step_ms * len(course.done)
    left_ms = course.since_ms - began_at_ms
    marks = [
        Mark(name, round(WIDTH * (offset_ms - left_ms) / whole_ms, 1))
        for name, offset_ms in moments.items()
        if offset_ms is not None and 0 <= offset_ms - left_ms <= whole_ms
    ]
    return Chart(tuple(panels), tuple(marks), _moment(left_ms), _moment(left_ms + whole_ms))


def _moment(ms: float) -> str:
    return f"{duration(abs(ms))} {'before' if ms < 0 else 'after'}"


def _panel(mark: str, name: str, values: Sequence[float], unit: str) -> Panel:
    highest = max(values)
    width, scale = WIDTH / len(values), (HEIGHT - 4) / (highest or 1)
    corners = [(0.0, float(HEIGHT))]
    for n, value in enumerate(values):
        y = HEIGHT - value * scale
        corners += [(n * width, y), ((n + 1) * width, y)]
    corners.append((float(WIDTH), float(HEIGHT)))
    peak = f"at most {amount(round(highest))} {unit}"
    none = sum(value == 0 for value in values)
    says = f"{name}: {peak}; none in {none} of {len(values)} steps"
    return Panel(name, peak, " ".join(f"{x:.1f},{y:.1f}" for x, y in corners), says, mark)
