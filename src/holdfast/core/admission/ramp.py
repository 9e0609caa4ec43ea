"""How the limit climbs after a promotion: from a tenth of what was usual to all of it, in steps, and back if it hurts.

A promoted standby has cold caches and meets all of the backlog at once. `turn` looks at one step and says what the next
is, by the first rule of `RULES` that applies.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from holdfast.model.ramp import Order

FLOOR: Final = 8
"""Statements at once that crush nobody: no limit is lower."""

STEP_MIN_MS: Final = 1000
"""No step is judged before: a second of statements says something."""

HEALTHY_FACTOR: Final = 2.0
"""Statements that take at most so many times as long as usual are healthy: the next step comes early."""
WORSE_FACTOR: Final = 4.0
"""Statements that take more than so many times as long as usual are a reason to step back."""
SLACK_MS: Final = 5.0
"""Added to what is usual before it is multiplied: statements of microseconds prove nothing by taking milliseconds."""
SAMPLES_MIN: Final = 5
"""Fewer statements in a step are no measure."""

RULES: Final = {
    "ramp.end": "a person said that it is over, or the policy does",
    "ramp.faster": "a person said to take the next step now",
    "ramp.hold": "a person said to stay at this step",
    "ramp.back": "statements wait, and are far slower than usual: one step back",
    "ramp.early": "statements are as fast as usual, or nobody has to wait: the next step need not wait either",
    "ramp.time": "this step has lasted for its part of the window",
    "ramp.stay": "neither healthy nor worse: wait for this step's time",
}
"""What each rule is for."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the statements of one step went."""

    latency_ms: float | None
    """The median time inside; None: too few to say."""
    usual_ms: float | None
    """The same before the incident."""
    waited: int
    """Statements that had to wait in this step, those included that still do."""

    @property
    def is_good(self) -> bool:
        """Whether the server bears this step well."""
        return self.waited == 0 or self._within(HEALTHY_FACTOR) is True

    @property
    def is_worse(self) -> bool:
        """Whether the server bears it badly, and letting fewer in would change that."""
        return self.waited > 0 and self._within(WORSE_FACTOR) is False

    def _within(self, factor: float) -> bool | None:
        if self.latency_ms is None or self.usual_ms is None:
            return None
        return self.latency_ms <= factor * (self.usual_ms + SLACK_MS)


@dataclass(frozen=True, slots=True)
class Ramp:
    """One climb. Times are milliseconds of the caller's clock."""

    usual: int
    """Statements at once before the incident."""
    start_percent: int
    """Of what was usual, in the first step; each further step is twice the one before."""
    window_ms: int
    began_ms: float
    step: int = 0
    since_ms: float = 0
    """When this step began."""
    is_held: bool = False
    faster: bool = False
    """A person wants the next step now."""
    ended: bool = False
    """A person wants no more of it."""

    @property
    def percent(self) -> int:
        """Of what was usual; beyond 100 while a backlog is left."""
        return self.start_percent << self.step

    @property
    def limit(self) -> int:
        """Statements at once in this step."""
        return _limit(self.usual, self.percent)

    @property
    def step_max_ms(self) -> float:
        """How long a step may last: by the end of the window what was usual is let in."""
        return self.window_ms / max(1, math.ceil(math.log2(100 / self.start_percent)))

    def ordered(self, order: Order) -> Ramp:
        """With a person's word."""
        match order:
            case Order.HOLD:
                return replace(self, is_held=True)
            case Order.RESUME:
                return replace(self, is_held=False)
            case Order.FASTER:
                return replace(self, faster=True)
            case Order.END:
                return replace(self, ended=True)


@dataclass(frozen=True, slots=True)
class Turn:
    """What comes next. ``ramp`` is None when it is over."""

    ramp: Ramp | None
    rule: str

    @property
    def moves(self) -> bool:
        """Whether something changes."""
        return self.rule not in ("ramp.hold", "ramp.stay")


def begin(usual: int, *, start_percent: int, window_ms: int, now_ms: float, most: int | None = None) -> Ramp | None:
    """The climb after a promotion; None if there is nothing to climb, because so few statements crush nobody.

    ``most`` statements may be inside in any case, and a step that lets in as many is none.
    """
    if start_percent >= 100 or usual <= FLOOR:
        return None
    while 2 * start_percent < 100 and _limit(usual, 2 * start_percent) == FLOOR:
        start_percent *= 2  # the next step lets in as many
    ramp = Ramp(usual, start_percent, window_ms, began_ms=now_ms, since_ms=now_ms)
    return ramp if most is None or ramp.limit < most else None


def turn(ramp: Ramp, now_ms: float, health: Health, most: int | None = None) -> Turn:
    """The next step of a ramp; the first rule that applies counts. ``most`` as in `begin`.

    It ends when what is usual was let in and nobody had to wait any more: no crowd is left before the gate when it is
    opened. Until then each step lets in twice as many. Nothing steps back once the window is over.
    """
    lasted_ms = now_ms - ramp.since_ms
    if ramp.ended:
        return Turn(None, "ramp.end")
    if ramp.faster:
        return Turn(_next(replace(ramp, faster=False), now_ms, health, most), "ramp.faster")
    if ramp.is_held:
        return Turn(ramp, "ramp.hold")
    if lasted_ms < STEP_MIN_MS:
        return Turn(ramp, "ramp.stay")
    if health.is_worse and ramp.step > 0 and now_ms - ramp.began_ms < ramp.window_ms:
        return Turn(replace(ramp, step=ramp.step - 1, since_ms=now_ms), "ramp.back")
    if health.is_good:
        return Turn(_next(ramp, now_ms, health, most), "ramp.early")
    if lasted_ms >= ramp.step_max_ms:
        return Turn(_next(ramp, now_ms, health, most), "ramp.time")
    return Turn(ramp, "ramp.stay")


def _next(ramp: Ramp, now_ms: float, health: Health, most: int | None) -> Ramp | None:
    after = replace(ramp, step=ramp.step + 1, since_ms=now_ms)
    bounds_nothing = most is not None and after.limit >= most
    return None if bounds_nothing or (health.waited == 0 and after.percent >= 100) else after


def _limit(usual: int, percent: int) -> int:
    return max(FLOOR, math.ceil(usual * percent / 100))


def usual_of(peaks: Sequence[int]) -> int:
    """What is usual, from the most statements that were inside at once in each of the last seconds.

    The ninth decile: a burst is not usual, and neither are the last seconds of a primary on which everything piles up.
    """
    if not peaks:
        return 0
    ordered = sorted(peaks)
    return ordered[math.ceil(0.9 * len(ordered)) - 1]


def median_of(durations_ms: Collection[float]) -> float | None:
    """The median; None if there are too few to say."""
    if len(durations_ms) < SAMPLES_MIN:
        return None
    ordered = sorted(durations_ms)
    return ordered[len(ordered) // 2]
