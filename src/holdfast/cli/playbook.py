"""The steps of an incident, drawn as a timeline that fills while they happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from holdfast.core.words import duration

if TYPE_CHECKING:
    from holdfast.core.playbook import Standing

WIDTH = 32
"""Of the timeline, in characters."""
_MARKS = {"waiting": "·", "running": "▸", "done": "✓", "not done": "✗"}


def drawn(steps: Sequence[Standing], now_ms: float) -> Iterator[str]:
    """A line for each step; ``now_ms`` counts from the first sign, as the steps' times do."""
    from holdfast.core.playbook import State

    moments = [ms for s in steps if s.step.letter != "R" for ms in (s.began_ms, s.ended_ms) if ms is not None]
    if any(s.state is State.RUNNING for s in steps):
        moments.append(round(now_ms))
    whole_ms = max(moments, default=0) or 1
    for s in steps:
        bar = _bar(s, whole_ms, now_ms)
        took = "" if s.ended_ms is None or s.began_ms is None else duration(s.ended_ms - s.began_ms)
        says = f"{s.state.value}: {s.says}" if s.says else s.state.value
        yield f"{_MARKS[s.state.value]} {s.step.letter} {s.step.name:17} {bar} {took:>9}  {says}"


def _bar(s: Standing, whole_ms: int, now_ms: float) -> str:
    if s.began_ms is None:
        return " " * WIDTH
    ended_ms = now_ms if s.ended_ms is None else s.ended_ms
    first = min(WIDTH - 1, int(WIDTH * max(0, s.began_ms) / whole_ms))
    last = min(WIDTH, max(first + 1, round(WIDTH * ended_ms / whole_ms)))
    return " " * first + ("█" if s.ended_ms is not None else "▒") * (last - first) + " " * (WIDTH - last)
