"""How many statements at once a server bears, found by trial: the limit follows the latency that is measured.

A trial compares the latency at the limit with that at a limit one step away, and with that at the limit again. Where
letting more in makes them slower they only queue, inside the server instead of before it: the limit is at the knee
when a step up makes such a queue and a step down does not. Trials in both directions in place of a remembered latency
are those of PCC (Dong et al., PCC: Re-architecting Congestion Control for Consistent High Performance, NSDI 2015);
moving the bound of a database step by step to where its throughput ends to grow is that of Heiss and Wagner (Adaptive
Load Control in Transaction Processing Systems, VLDB 1991). Why not a gradient against a long-term average:
docs/decisions/2026-11-26-the-limit-is-found-by-trial.md.

Pure: every call takes the time, in milliseconds of any steady clock, and what is left to chance is drawn from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from holdfast.core.admission.ramp import FLOOR

STEP: Final = 1.25
"""A step lets in so many times as many, or as few."""
STEPS_MAX: Final = 2
"""After a step in one direction the next trial goes so many steps at once: a limit that is far off moves faster."""

QUEUE_SHARE: Final = 0.25
"""They queue where latency grows with more than this power of the number inside. Below the knee it is 0; above it 1
for a proxy that is alone, and 1/n for each of n that load the server alike, so that two of them find the knee, too."""
CLEAR_QUEUE_SHARE: Final = 0.6
"""From this power on one trial is enough to let fewer in; below it a second one must say the same."""

AGREE: Final = 1.25
"""A trial counts only if both latencies at the limit itself differ by no more: else the work has changed meanwhile."""

WINDOW_MIN_MS: Final = 1000
WINDOW_MAX_MS: Final = 10_000
DONE_ENOUGH: Final = 200
"""A latency is measured over at least a second, and until so many statements were done, but no longer than ten."""
DONE_MIN: Final = 50
"""Fewer are no measure, and the limit stays."""
SETTLE: Final = 3
"""After the limit has moved so many times the latency pass before it is measured: what was inside must have left."""
SETTLE_MAX_MS: Final = 3000

PAUSE_MAX_MS: Final = 2000
"""Before its window a trial waits for up to so long, at random: two proxies in step would take each other's trials for
the ground that they stand on, and each find that a step up makes nothing slower (seen: both ran away)."""

FULL_SHARE: Final = 0.5
"""The limit is met, and worth a trial, if all places were taken at this share of the looks."""
REST_MS: Final = 10_000
"""Between two rounds of trials that changed nothing, as long as the latency stays the same."""


class Way(StrEnum):
    """Where a trial goes."""

    UP = "up"
    DOWN = "down"

    @property
    def other(self) -> Way:
        """The other way."""
        return Way.DOWN if self is Way.UP else Way.UP


class _Stage(Enum):
    """Which window of a trial is being measured."""

    BEFORE = auto()
    TRIAL = auto()
    AFTER = auto()


@dataclass(slots=True)
class _Window:
    """What one window has seen so far."""

    from_ms: float
    """Before this nothing counts: the number inside still moves."""
    began_ms: float = 0
    done_before: int = 0
    looks: int = 0
    full: int = 0
    inside_sum: int = 0


@dataclass(frozen=True, slots=True)
class _Measure:
    """What one window says. ``latency_ms`` is None where too few statements were done."""

    latency_ms: float | None
    is_met: bool


class AdaptiveLimit:
    """The limit of one port. `look` is told what is seen; nothing else moves it but `bound`."""

    def __init__(self, start: int, most: int | None = None, draw: Callable[[], float] = lambda: 0.0) -> None:
        """``draw``: a number from 0 to 1 by chance, another one in each proxy."""
        self.settled = max(start, FLOOR)
        """The limit that trials start from and come back to."""
        self.latency_ms: float | None = None
        """The mean time inside that was last measured at that limit; None before."""
        self.trial: Way | None = None
        """The trial that is under way now."""
        self._draw = draw
        self._most: int | None = None
        self._way = Way.UP
        self._moves = 0
        self._stayed = 0
        self._is_doubted = False
        """A trial has said that fewer would do, and the next is to confirm it."""
        self._rests_until_ms = -math.inf
        self._stage = _Stage.BEFORE
        self._before_ms = 0.0
        self._tried_ms: float | None = None
        self._measured_at = self.settled
        self._window: _Window | None = None
        self.bound(most)

    @property
    def floor(self) -> int:
        """No limit is lower."""
        return FLOOR if self._most is None else min(FLOOR, self._most)

    @property
    def limit(self) -> int:
        """Statements that may be inside now, by the trial if there is one."""
        return self.settled if self.trial is None else self._stepped(self.trial)

    @property
    def is_measuring(self) -> bool:
        """Whether it wants to `look` also if nobody waits."""
        return self._window is not None

    def bound(self, most: int | None) -> None:
        """From now on the limit is at most ``most``; None: as high as it is found."""
        if most != self._most:
            self._most = most
            self.settled = self._bounded(self.settled)
            self.restart()

    def restart(self) -> None:
        """What was seen so far says nothing any more: another server, or none. The limit stays."""
        self.trial, self._window, self._stage = None, None, _Stage.BEFORE
        self._moves = self._stayed = 0
        self._is_doubted = False
        self._rests_until_ms, self.latency_ms = -math.inf, None

    def look(self, now_ms: float, inside: int, is_full: bool, done: int) -> None:
        """See how things are, some ten times a second while there is something to see.

        ``inside``: statements inside now. ``is_full``: whether the limit keeps others out. ``done``: statements that
        have ended since any fixed moment.
        """
        window = self._window
        if window is None:
            if is_full:
                self._window = _Window(now_ms)
            return
        if now_ms < window.from_ms:
            return
        if not window.looks:
            window.began_ms, window.done_before = now_ms, done
        window.looks += 1
        window.full += is_full
        window.inside_sum += inside
        lasted_ms, count = now_ms - window.began_ms, done - window.done_before
        if lasted_ms < WINDOW_MIN_MS or (count < DONE_ENOUGH and lasted_ms < WINDOW_MAX_MS):
            return
        self._take(_measured(window, lasted_ms, count), now_ms)

    # rules

    def _take(self, measure: _Measure, now_ms: float) -> None:
        if self._stage is _Stage.TRIAL:
            self._tried_ms = measure.latency_ms
            self._go(_Stage.AFTER, None, now_ms)
        elif measure.latency_ms is None or not measure.is_met:
            self._go(_Stage.BEFORE, None, now_ms)
            self._window = None  # until the limit is met again
        elif self._stage is _Stage.BEFORE:
            self._begin(measure.latency_ms, now_ms)
        else:
            self._judge(measure.latency_ms, now_ms)

    def _begin(self, latency_ms: float, now_ms: float) -> None:
        """A latency at the limit: begin a trial, or go on resting."""
        known_ms, self.latency_ms = self.latency_ms, latency_ms
        if now_ms < self._rests_until_ms and known_ms is not None:
            if _agree(known_ms, latency_ms):
                self.latency_ms = known_ms  # slow changes add up
                self._go(_Stage.BEFORE, None, now_ms)
                return
            self._way = Way.DOWN if latency_ms > known_ms else Way.UP
            self._stayed = 0
        self._try(now_ms)

    def _try(self, now_ms: float) -> None:
        if self._stepped(self._way) == self.settled:
            self._way = self._way.other
            self._moves = 0
        self._before_ms = self.latency_ms or 0.0
        if self._stepped(self._way) == self.settled:
            self._go(_Stage.BEFORE, None, now_ms)  # there is only one limit
        else:
            self._go(_Stage.TRIAL, self._way, now_ms)

    def _judge(self, after_ms: float, now_ms: float) -> None:
        """The third window is over: take the step, or stay."""
        tried_ms, self.latency_ms = self._tried_ms, after_ms
        if tried_ms is None or not _agree(self._before_ms, after_ms):
            self._moves = 0
            if tried_ms is None:
                self._way = self._way.other  # too few were done there to say: it would end the same way for ever
            self._try(now_ms)
            return
        there = self._stepped(self._way)
        usual_ms = math.sqrt(self._before_ms * after_ms)
        power = math.log(tried_ms / usual_ms) / math.log(there / self.settled)
        if self._way is Way.DOWN and QUEUE_SHARE < power < CLEAR_QUEUE_SHARE and not self._is_doubted:
            self._is_doubted = True
            self._try(now_ms)
            return
        self._is_doubted = False
        if (power > QUEUE_SHARE) is (self._way is Way.DOWN):
            self.settled, self.latency_ms = there, None
            self._moves, self._stayed = self._moves + 1, 0
            self._go(_Stage.BEFORE, None, now_ms)
            return
        self._moves, self._stayed, self._way = 0, self._stayed + 1, self._way.other
        if self._stayed >= 2:
            self._stayed, self._rests_until_ms = 0, now_ms + REST_MS
            self._go(_Stage.BEFORE, None, now_ms)
        else:
            self._try(now_ms)

    def _go(self, stage: _Stage, trial: Way | None, now_ms: float) -> None:
        self._stage, self.trial = stage, trial
        moved, self._measured_at = self.limit != self._measured_at, self.limit
        settle_ms = min(SETTLE * self._before_ms, SETTLE_MAX_MS) if moved else 0.0
        pause_ms = self._draw() * PAUSE_MAX_MS if stage is _Stage.TRIAL else 0.0
        self._window = _Window(now_ms + settle_ms + pause_ms)

    def _stepped(self, way: Way) -> int:
        factor = STEP ** min(self._moves + 1, STEPS_MAX)
        if way is Way.UP:
            return self._bounded(max(self.settled + 1, round(self.settled * factor)))
        return self._bounded(min(self.settled - 1, round(self.settled / factor)))

    def _bounded(self, limit: int) -> int:
        return max(self.floor, limit if self._most is None else min(limit, self._most))


def _measured(window: _Window, lasted_ms: float, count: int) -> _Measure:
    """The mean time inside by Little's law (A Proof for the Queuing Formula L = λW, 1961): one report of a minute
    that ends in a window does not weigh more than the place that it had."""
    inside = window.inside_sum / window.looks
    latency_ms = inside * lasted_ms / count if count >= DONE_MIN and inside > 0 else None
    return _Measure(latency_ms, window.full >= FULL_SHARE * window.looks)


def _agree(one_ms: float, other_ms: float) -> bool:
    return abs(math.log(one_ms / other_ms)) <= math.log(AGREE)
