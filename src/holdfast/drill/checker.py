"""The checker: believes nobody, and knows only what clients saw and the rows found at the end.

Pure, so that it can be tested with forged histories. Times are Unix milliseconds.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from holdfast.drill.history import Attempt, FreshRead, History, Outcome, Row, Server

Id = tuple[int, int]
"""Writer and sequence."""

STALL_MS = 100.0
"""A shorter interval without an acknowledgement is not downtime: a slow fsync makes as long a one."""

IN_FLIGHT_GRACE_MS = 50.0
"""A statement sent this soon after the injection counts as in flight on the dead server: it takes time to be seen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of every write. Each tuple lists ids in order; empty is good for all but the two ``unknown_``."""

    acknowledged: int
    errors: int
    unknown: int
    lost: tuple[Id, ...]
    """Acknowledged, and not there."""
    duplicated: tuple[Id, ...]
    """There more than once."""
    altered: tuple[Id, ...]
    """There with another content than was written."""
    wrong_errors: tuple[Id, ...]
    """There, although the client was told that it failed."""
    strangers: tuple[Id, ...]
    """There, although no client wrote it."""
    seen_then_gone: tuple[Id, ...]
    """Seen by a reader, and not there at the end."""
    unknown_committed: tuple[Id, ...]
    unknown_absent: tuple[Id, ...]
    failed_in_flight: int
    """Errors and unknown outcomes of statements sent before the injection was over, or IN_FLIGHT_GRACE_MS later."""
    failed_later: int
    """Errors and unknown outcomes of statements sent later: a client that should have been held was not."""
    rto_ms: float
    availability: float
    recovered: bool
    """Whether any write was acknowledged after the longest interval."""
    stale_reads: tuple[FreshRead, ...] = ()
    """Answers of the writable port that are older than what somebody knew before the question was asked."""
    lost_by_choice: tuple[Id, ...] = ()
    """Missing, of writers that had asked not to wait for standbys."""
    two_leaders: tuple[Attempt, ...] = ()
    """Acknowledged by a server after another had begun to acknowledge in a later epoch, or in the same."""

    @property
    def clean(self) -> bool:
        """Nothing that was promised is broken."""
        broken = self.lost or self.duplicated or self.altered or self.wrong_errors or self.strangers
        return not (broken or self.stale_reads or self.two_leaders)


def check(
    history: History,
    rows: Iterable[Row],
    *,
    fault_at_ms: float,
    stopped_at_ms: float,
    injection_ms: float = 0.0,
    payload_of: Callable[[int, int], str] | None = None,
    lowered_from: int | None = None,
    may_lose: bool = False,
) -> Verdict:
    """Judge a run; raises ValueError if the history itself is no evidence (an id tried twice, time running back).

    ``fault_at_ms`` is when the injection began, ``injection_ms`` how long it took. Writers from ``lowered_from`` on
    asked for less than the cluster's durability: what they lose is counted apart. With ``may_lose`` a read need not
    show what is lost.
    """
    attempts = _by_id(history)
    copies: Counter[Id] = Counter()
    altered: list[Id] = []
    for row in rows:
        key = (row.writer, row.sequence)
        copies[key] += 1
        if payload_of is not None and row.payload != payload_of(*key):
            altered.append(key)

    def which(outcome: Outcome, present: bool) -> tuple[Id, ...]:
        return tuple(sorted(k for k, a in attempts.items() if a.outcome is outcome and (k in copies) is present))

    failed = [a for a in attempts.values() if a.outcome is not Outcome.ACKNOWLEDGED]
    later = sum(a.start_ms > fault_at_ms + injection_ms + IN_FLIGHT_GRACE_MS for a in failed)
    missing = which(Outcome.ACKNOWLEDGED, present=False)
    lowered = tuple(k for k in missing if lowered_from is not None and k[0] >= lowered_from)
    acknowledged_at_ms = history.acknowledged_at_ms(before_writer=lowered_from)
    rto_ms, recovered = longest_gap_ms(acknowledged_at_ms, fault_at_ms, stopped_at_ms)
    return Verdict(
        acknowledged=history.acknowledged,
        errors=history.errors,
        unknown=history.unknown,
        lost=tuple(k for k in missing if k not in set(lowered)),
        lost_by_choice=lowered,
        duplicated=tuple(sorted(k for k, n in copies.items() if n > 1)),
        altered=tuple(sorted(set(altered))),
        wrong_errors=which(Outcome.ERROR, present=True),
        strangers=tuple(sorted(k for k in copies if k not in attempts)),
        seen_then_gone=tuple(sorted(k for k in history.observed if k not in copies)),
        unknown_committed=which(Outcome.UNKNOWN, present=True),
        unknown_absent=which(Outcome.UNKNOWN, present=False),
        failed_in_flight=sum(a.end_ms >= fault_at_ms for a in failed) - later,
        failed_later=later,
        rto_ms=rto_ms,
        availability=availability(acknowledged_at_ms, stopped_at_ms),
        recovered=recovered,
        stale_reads=stale_reads(history, forgotten=frozenset(missing if may_lose else ())),
        two_leaders=two_leaders(a for a in attempts.values() if lowered_from is None or a.writer < lowered_from),
    )


def stale_reads(history: History, forgotten: frozenset[Id] = frozenset()) -> tuple[FreshRead, ...]:
    """Reads on the writable port that went back in time.

    Each must show at least what was acknowledged, and what another such read was answered, before it was asked; but
    for what an asynchronous cluster has ``forgotten``.
    """
    known: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for attempt in history:
        if attempt.outcome is Outcome.ACKNOWLEDGED and (attempt.writer, attempt.sequence) not in forgotten:
            known[attempt.writer].append((attempt.end_ms, attempt.sequence))
    for read in history.fresh_reads:
        if (read.writer, read.sequence) not in forgotten:
            known[read.writer].append((read.end_ms, read.sequence))
    times: dict[int, list[float]] = {}
    newest: dict[int, list[int]] = {}
    for writer, facts in known.items():
        facts.sort()
        times[writer] = [at_ms for at_ms, _ in facts]
        newest[writer] = list(itertools.accumulate((sequence for _, sequence in facts), max))
    stale = []
    for read in history.fresh_reads:
        before = bisect.bisect_left(times.get(read.writer, ()), read.start_ms)
        if before and newest[read.writer][before - 1] > read.sequence:
            stale.append(read)
    return tuple(stale)


def two_leaders(attempts: Iterable[Attempt]) -> tuple[Attempt, ...]:
    """Acknowledgements that prove that two servers led at once.

    A server's epoch is its timeline. One timeline belongs to one server; and a write that was sent after a later
    timeline had acknowledged one may not be acknowledged on an earlier.
    """
    acknowledged = [a for a in attempts if a.outcome is Outcome.ACKNOWLEDGED and a.server is not None]
    owners: dict[int, Server] = {}
    first_ms: dict[int, float] = {}
    for attempt in sorted(acknowledged, key=lambda a: a.end_ms):
        assert attempt.server is not None
        owners.setdefault(attempt.server.timeline, attempt.server)
        first_ms.setdefault(attempt.server.timeline, attempt.end_ms)

    def overlaps(attempt: Attempt) -> bool:
        assert attempt.server is not None
        timeline = attempt.server.timeline
        later_ms = min((at_ms for other, at_ms in first_ms.items() if other > timeline), default=float("inf"))
        return owners[timeline] != attempt.server or attempt.start_ms > later_ms

    return tuple(attempt for attempt in acknowledged if overlaps(attempt))


def longest_gap_ms(acknowledged_at_ms: Sequence[float], fault_at_ms: float, stopped_at_ms: float) -> tuple[float, bool]:
    """The longest interval, over all clients together, without an acknowledged write after the fault.

    Intervals lie between consecutive acknowledgements. The first one begins at the fault itself, not at the last
    acknowledgement before it; the last one ends when the load was stopped. The flag says whether an acknowledgement
    ended the longest one: if not, writing had not resumed and the true figure is greater. ``acknowledged_at_ms`` is
    in order.
    """
    longest_ms, recovered, begin_ms = 0.0, True, fault_at_ms
    for at_ms in acknowledged_at_ms:
        if at_ms <= fault_at_ms:
            continue
        if at_ms - begin_ms > longest_ms:
            longest_ms = at_ms - begin_ms
        begin_ms = at_ms
    if stopped_at_ms - begin_ms > longest_ms:
        longest_ms, recovered = stopped_at_ms - begin_ms, False
    return longest_ms, recovered


def availability(acknowledged_at_ms: Sequence[float], stopped_at_ms: float) -> float:
    """The share of the time from the first acknowledgement to the stop that lies in no stall (above STALL_MS)."""
    if not acknowledged_at_ms or stopped_at_ms <= acknowledged_at_ms[0]:
        return 0.0
    ends_ms = [*acknowledged_at_ms[1:], max(stopped_at_ms, acknowledged_at_ms[-1])]
    gaps_ms = (end - begin for begin, end in zip(acknowledged_at_ms, ends_ms, strict=True))
    stalled_ms = sum(gap for gap in gaps_ms if gap > STALL_MS)
    return 1.0 - stalled_ms / (ends_ms[-1] - acknowledged_at_ms[0])


def _by_id(history: History) -> dict[Id, Attempt]:
    attempts: dict[Id, Attempt] = {}
    for attempt in history:
        key = (attempt.writer, attempt.sequence)
        if key in attempts:
            raise ValueError(f"writer {key[0]} tried sequence {key[1]} twice: this history proves nothing")
        if attempt.end_ms < attempt.start_ms:
            raise ValueError(f"writer {key[0]}, sequence {key[1]} ended before it started")
        attempts[key] = attempt
    return attempts
