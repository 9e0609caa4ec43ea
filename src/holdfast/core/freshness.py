"""Which standby may answer a read: what the session has written, how far behind each is, and how busy. Pure.

**What a session has written** is not asked for; that would cost a round trip for each write. The primary's position is
sampled instead, for all sessions together. A sample that was *sent* after the answer to a write had come covers it: the
server had written it before it was asked. One that was under way already proves nothing, and until there is one that
does, the session reads from the primary. Numbers tell what came first, not clocks.

**A new epoch.** The primary of an epoch has, from its first sample on, all that is left of those before. So whatever
was written in an earlier epoch is there for a standby of this one that has replayed up to that sample; positions of
different epochs are compared in no other way. A position of an epoch that is not known yet is not there.

**How far behind.** A standby is sent what is flushed, and replays whole records. What a transaction that goes on has
written may stay unflushed for long while nobody commits, and what is flushed may end within a record. So lag is
measured at positions that are ends of records and flushed: those of earlier samples that the flush has passed.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from holdfast.model.lsn import Lsn

KEPT_MAX: Final = 1024
"""Samples that are remembered. What came before the oldest is covered by that one: it is later, and covers more."""
PAST_STEP_MS: Final = 100
"""Of how far the log was when, one sample is remembered in so much time: lag is known as exactly as that."""
PAST_MAX: Final = 6000
"""For ten minutes."""
UNFLUSHED_MAX: Final = 1024
"""Positions that are remembered until they are flushed."""
FIRST_MS: Final = 1000
"""For so long a standby is not judged that lacks what was there when a position was asked for first."""
_PAGE_HEADER: Final = 24
"""Bytes (xlog_internal.h, SizeOfXLogShortPHD),"""
_SEGMENT_HEADER: Final = 40
"""and those of a segment's first page (SizeOfXLogLongPHD)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: samples up to this number had been sent, and this was the newest epoch heard of."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True, order=True)
class Reached:
    """The log of an epoch up to a position, as a token says it: ``7:0/3000148``."""

    epoch: int
    lsn: Lsn

    def __str__(self) -> str:
        return f"{self.epoch}:{self.lsn}"

    @classmethod
    def parse(cls, text: str) -> Reached:
        """Read a token; raises ValueError for anything else."""
        epoch, colon, lsn = text.strip().partition(":")
        if not (colon and epoch.isascii() and epoch.isdigit()):
            raise ValueError(f"not a position: {text!r} (expected an epoch and a log position, such as 7:0/3000148)")
        return cls(int(epoch), Lsn.parse(lsn))


@dataclass(frozen=True, slots=True)
class Pages:
    """How the log is cut, in bytes."""

    page: int
    segment: int

    def end_of(self, lsn: Lsn) -> Lsn:
        """Where a standby is that has replayed all before ``lsn``.

        A primary that has filled a page names the first byte that can be written, behind the header of the next one.
        """
        header = _SEGMENT_HEADER if lsn % self.segment < self.page else _PAGE_HEADER
        return Lsn(lsn - header) if lsn % self.page == header else lsn


class Primary:
    """The samples of the primary's position, in the order in which they were sent; one is under way at a time."""

    def __init__(self) -> None:
        self.sent = 0
        """The number of the last sample that was sent."""
        self.pages: Pages | None = None
        """None: not known yet."""
        self._answered_ms = 0.0
        self._kept: deque[tuple[int, Reached]] = deque(maxlen=KEPT_MAX)
        self._past: deque[tuple[float, Lsn]] = deque(maxlen=PAST_MAX)  # of the newest epoch
        self._unflushed: deque[Lsn] = deque()
        self._flushed = Lsn(0)
        self._sendable: Lsn | None = None  # the last end of a record that is known, and flushed
        self._first: Reached | None = None

    def begin(self) -> int:
        """A sample is about to be sent; returns its number."""
        self.sent += 1
        return self.sent

    def answer(self, number: int, sent_ms: float, reached: Reached, now_ms: float, flushed: Lsn | None = None) -> None:
        """A primary of that epoch had its log up to there after the sample was sent, and then ``flushed`` (None: all).

        One of an older epoch than others before says nothing: that server leads no more.
        """
        reached = Reached(reached.epoch, self._end_of(reached.lsn))
        if self._first is None or reached.epoch > self._first.epoch:
            self._first = reached
            self._past.clear()
            self._unflushed.clear()
            self._sendable = None
        if reached.epoch < self._first.epoch:
            return
        self._kept.append((number, reached))
        self._answered_ms = now_ms
        self._flushed = reached.lsn if flushed is None else flushed
        self._note_flushed(reached.lsn)
        if self._sendable is not None and (not self._past or sent_ms - self._past[-1][0] >= PAST_STEP_MS):
            self._past.append((sent_ms, self._sendable))

    def _note_flushed(self, inserted: Lsn) -> None:
        unflushed = self._unflushed
        while unflushed and (unflushed[-1] >= inserted or len(unflushed) >= UNFLUSHED_MAX):  # less after a crash
            unflushed.pop()
        unflushed.append(inserted)
        while unflushed and unflushed[0] <= self._flushed:
            self._sendable = unflushed.popleft()

    def _end_of(self, lsn: Lsn) -> Lsn:
        return lsn if self.pages is None else self.pages.end_of(lsn)

    @property
    def newest(self) -> Reached | None:
        """The last sample's."""
        return self._kept[-1][1] if self._kept else None

    def covers(self, mark: Mark) -> Reached | None:
        """What has surely all that was written before ``mark``; None: it is not known yet."""
        if not self._kept or self._kept[-1][0] <= mark.number:
            return None
        after = itertools.takewhile(lambda sample: sample[0] > mark.number, reversed(self._kept))
        return min((reached for _, reached in after if reached.epoch >= mark.epoch), default=None)

    def is_seen(self, needed: Reached, replayed: Reached) -> bool:
        """Whether a standby of the epoch of ``replayed`` that has replayed up to there shows what is ``needed``."""
        if needed.epoch == replayed.epoch:
            return replayed.lsn >= self._end_of(needed.lsn)
        if needed.epoch > replayed.epoch or self._first is None or self._first.epoch != replayed.epoch:
            return False
        return replayed.lsn >= self._first.lsn

    def can_measure(self, replayed: Reached) -> bool:
        """Whether anything is known of how far behind a standby is that has replayed up to there."""
        newest = self.newest
        if newest is None or newest.epoch != replayed.epoch:
            return False
        if not self._past:
            return replayed.lsn >= self._flushed
        first_ms, first = self._past[0]
        return replayed.lsn >= first or self._answered_ms - first_ms >= FIRST_MS

    def lag_ms(self, replayed: Reached) -> float | None:
        """How old what a standby shows may be: it has all that it could have been sent so long ago.

        None: it lacks something that was there when it was looked for first, or nothing is known (`can_measure`).
        While no primary answers it is what it was when one last did.
        """
        if not self.can_measure(replayed):
            return None
        if replayed.lsn >= (self._flushed if self._sendable is None else self._sendable):
            return 0.0
        had = bisect_right(self._past, replayed.lsn, key=lambda moment: moment[1])
        return max(0.0, self._answered_ms - self._past[had - 1][0]) if had else None


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a standby is read from."""

    lag_max_ms: int
    """One that is further behind leaves."""
    back_ms: int = 1000
    """It comes back once it has been within half of that for so long."""

    @property
    def lag_back_ms(self) -> float:
        """As far behind it may be when it comes back."""
        return self.lag_max_ms / 2


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a standby is among those that are read from."""

    is_in: bool = False
    lag_ms: float | None = None
    well_since_ms: float | None = None
    """While it is out: since when it has been well enough to come back."""
    left: int = 0
    """How often it has left."""
    is_known: bool = False
    """It was in, or was found too far behind, before."""


def judge(standing: Standing, lag_ms: float | None, bounds: Bounds, now_ms: float) -> Standing:
    """The standing after a look that found the standby ``lag_ms`` behind; None: it gave no answer, and is out.

    The first look decides by itself. Later one that has left comes back when it has been within half of the bound
    without a break for `Bounds.back_ms`, so that one whose lag wavers about the bound does not come and go.
    """
    if lag_ms is None or lag_ms > bounds.lag_max_ms:
        left = standing.left + standing.is_in
        return replace(standing, is_in=False, lag_ms=lag_ms, well_since_ms=None, left=left, is_known=True)
    if standing.is_in or not standing.is_known:
        return replace(standing, is_in=True, lag_ms=lag_ms, well_since_ms=None, is_known=True)
    if lag_ms > bounds.lag_back_ms:
        return replace(standing, lag_ms=lag_ms, well_since_ms=None)
    since_ms = now_ms if standing.well_since_ms is None else standing.well_since_ms
    if now_ms - since_ms >= bounds.back_ms:
        return replace(standing, is_in=True, lag_ms=lag_ms, well_since_ms=None)
    return replace(standing, lag_ms=lag_ms, well_since_ms=since_ms)


@dataclass(frozen=True, slots=True)
class Choice:
    """A standby that could be used: how much is asked of it now, and how far behind it is."""

    load: int
    lag_ms: float


def in_order(choices: Sequence[Choice], bounds: Bounds, turn: int) -> list[int]:
    """The indices of ``choices``, the best first: the least load, where lag counts as load; equals take turns.

    One that is as far behind as it may be counts as one with twice the load (and one more).
    """
    count = len(choices)

    def cost(index: int) -> tuple[float, int]:
        choice = choices[index]
        lag = choice.lag_ms / bounds.lag_max_ms if bounds.lag_max_ms else 0.0
        return (choice.load + 1) * (1 + round(lag, 1)), (index - turn) % count

    return sorted(range(count), key=cost)
