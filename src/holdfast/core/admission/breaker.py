"""Whether a server is tried at all: after failures in a row nobody goes there but one probe at a time.

closed     everybody may try; failures in a row are counted
open       nobody may try until the pause is over
half-open  one probe is under way, however many ask; what becomes of it decides

The pattern is that of Nygard (Release It!, 2007). A failure is a time-out or a connection that came to nothing. A
server that answers is alive, whatever it answers.

Pure: every call takes the time, in milliseconds of any steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DOUBLINGS_MAX: Final = 3
"""The pause is doubled with each probe that fails, so many times at most."""


class BreakerState(StrEnum):
    """Who may try a server."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Outcome(StrEnum):
    """What a trial says of the server."""

    ALIVE = "alive"
    """It answered."""
    FAILED = "failed"
    """It did not answer in time, or the connection came to nothing."""
    UNKNOWN = "unknown"
    """The trial was given up before it could tell."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """``failures_max`` in a row open it, 0: never. ``open_ms`` is the first pause. A probe that is not settled after
    ``probe_ms`` does not keep others from probing any more."""

    failures_max: int
    open_ms: float
    probe_ms: float


@dataclass(slots=True, eq=False)
class Trial:
    """Leave to try a server, to be settled in any case."""

    generation: int
    lapses_ms: float | None = None
    """Of a probe."""


class Breaker:
    """The breaker of one server."""

    def __init__(self, limits: BreakerLimits) -> None:
        self.limits = limits
        self.state = BreakerState.CLOSED
        self.failures = 0
        """In a row, while it is closed; then those that opened it and the probes that failed."""
        self.since_ms = 0.0
        """When it was opened, unless it is closed."""
        self._due_ms = 0.0
        self._pauses = 0
        self._probe: Trial | None = None
        self._generation = 0

    def admits(self, now_ms: float) -> bool:
        """Whether `ask` would say yes."""
        if self.state is BreakerState.CLOSED:
            return True
        probe = self._probe
        if probe is not None:
            return probe.lapses_ms is not None and now_ms >= probe.lapses_ms
        return now_ms >= self._due_ms

    def ask(self, now_ms: float) -> Trial | None:
        """Leave to try the server now; None: not now."""
        if not self.admits(now_ms):
            return None
        if self.state is BreakerState.CLOSED:
            return Trial(self._generation)
        self.state = BreakerState.HALF_OPEN
        self._probe = Trial(self._generation, now_ms + self.limits.probe_ms)
        return self._probe

    def settle(self, trial: Trial, outcome: Outcome, now_ms: float) -> None:
        """What became of a trial. A failure counts if nothing has been learnt since the trial began."""
        if outcome is Outcome.ALIVE:
            self._close()
        elif trial is self._probe:
            self._probe, self.state = None, BreakerState.OPEN
            if outcome is Outcome.FAILED:
                self.failures += 1
                self._pause(now_ms)
            else:
                self._due_ms = now_ms
        elif outcome is Outcome.FAILED and self.state is BreakerState.CLOSED and trial.generation == self._generation:
            self.failures += 1
            if 0 < self.limits.failures_max <= self.failures:
                self._open(now_ms)

    def hurry(self, now_ms: float) -> None:
        """Something was heard of the server: the next one who asks may probe."""
        self._due_ms = min(self._due_ms, now_ms)

    def limits_are(self, limits: BreakerLimits) -> None:
        """Other limits are in force."""
        self.limits = limits
        if limits.failures_max == 0 and self.state is not BreakerState.CLOSED:
            self._close()

    def _open(self, now_ms: float) -> None:
        self.state, self.since_ms = BreakerState.OPEN, now_ms
        self._generation += 1
        self._pause(now_ms)

    def _pause(self, now_ms: float) -> None:
        self._due_ms = now_ms + self.limits.open_ms * (1 << self._pauses)
        self._pauses = min(self._pauses + 1, DOUBLINGS_MAX)

    def _close(self) -> None:
        self.failures = self._pauses = 0
        if self.state is not BreakerState.CLOSED:
            self.state, self._probe = BreakerState.CLOSED, None
            self._generation += 1
