"""How a suspect is let in on trial at one proxy: alone first, then with others, until it is seen to do no harm.

A step is over when as many as it lets in have run to their ends, each about as fast as the first did alone, and it has
lasted for a while. Each step lets in twice as many as the one before. When more are let in than were in flight when the
primary was lost, the suspect is harmless.

Pure: every call takes the time, in milliseconds of any steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast.core.admission.ramp import FLOOR, SLACK_MS, WORSE_FACTOR

STEP_MIN_MS: Final = 500
"""A step lasts so long at least: the harm may show a little after the statement's end."""


@dataclass(slots=True)
class Trial:
    """One suspect at one proxy."""

    sessions: int
    """In which it was in flight when the primary was lost."""
    since_ms: float
    """When this step began."""
    limit: int = 1
    inside: int = 0
    done: int = 0
    """Ran to their ends in this step, with no harm."""
    alone_ms: float | None = None
    """How long the quickest of those took that ran alone."""

    @property
    def has_room(self) -> bool:
        """Whether one more may go in."""
        return self.inside < self.limit

    def enter(self) -> None:
        """One goes in."""
        self.inside += 1

    def left(self) -> None:
        """One is out that proves nothing: it failed, was cancelled, or its server was lost."""
        self.inside -= 1

    def ended(self, took_ms: float, now_ms: float) -> bool:
        """One ran to its end; whether the suspect is harmless by that."""
        self.inside -= 1
        if self.limit == 1 and (self.alone_ms is None or took_ms < self.alone_ms):
            self.alone_ms = took_ms
        if self.alone_ms is not None and took_ms > WORSE_FACTOR * (self.alone_ms + SLACK_MS):
            self.done = 0
            return False
        self.done += 1
        if self.done < self.limit or now_ms - self.since_ms < STEP_MIN_MS:
            return False
        self.limit, self.done, self.since_ms = 2 * self.limit, 0, now_ms
        return self.limit > max(FLOOR, self.sessions)
