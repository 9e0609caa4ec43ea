"""The history of a run as points over time, for the charts. Times are seconds relative to the fault."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.drill.history import History, Outcome

BUCKET_MS = 50.0
"""Fine enough to show a stall of a few hundred milliseconds; about 20 writes each at the default rate."""

OVERVIEW_BUCKET_MS = 250.0

BEFORE_MS = 1200.0
"""How much of the time before the fault the close-up shows."""


@dataclass(frozen=True, slots=True)
class Series:
    """One point per bucket, at the bucket's middle. Latencies are None where nothing was answered.

    A write stands where it was answered, with the time that its client waited for it.
    """

    bucket_ms: float
    at_s: list[float]
    writes_per_s: list[float]
    reads_per_s: list[float]
    latency_p50_ms: list[float | None]
    latency_max_ms: list[float | None]
    failed: list[int]


@dataclass(frozen=True, slots=True)
class Samples:
    """A close-up of the failover and the whole run."""

    fault_at_ms: float
    close: Series
    whole: Series
    stall_s: tuple[float, float]
    """Where the longest interval without an acknowledged write lies."""

    @classmethod
    def of(cls, history: History, *, fault_at_ms: float, stopped_at_ms: float) -> Samples:
        """Sort a history into buckets."""
        ends_ms = history.acknowledged_at_ms()
        first_ms = ends_ms[0] if ends_ms else fault_at_ms
        stalled_ms, resumed_ms = _stall_ms(ends_ms, fault_at_ms, stopped_at_ms)
        until_ms = resumed_ms + max(1500.0, 1.2 * (resumed_ms - fault_at_ms))
        until_ms = min(until_ms, stopped_at_ms)
        return cls(
            fault_at_ms,
            _series(history, fault_at_ms, max(first_ms, fault_at_ms - BEFORE_MS), until_ms, BUCKET_MS),
            _series(history, fault_at_ms, first_ms, stopped_at_ms, OVERVIEW_BUCKET_MS),
            ((stalled_ms - fault_at_ms) / 1000, (resumed_ms - fault_at_ms) / 1000),
        )


def _stall_ms(ends_ms: Sequence[float], fault_at_ms: float, stopped_at_ms: float) -> tuple[float, float]:
    """Where the longest interval without an acknowledgement after the fault begins and ends."""
    points = [fault_at_ms, *(at_ms for at_ms in ends_ms if at_ms > fault_at_ms), stopped_at_ms]
    return max(itertools.pairwise(points), key=lambda gap: gap[1] - gap[0])


def _series(history: History, fault_at_ms: float, from_ms: float, to_ms: float, bucket_ms: float) -> Series:
    first = int((from_ms - fault_at_ms) // bucket_ms)
    count = max(1, int((to_ms - fault_at_ms) // bucket_ms) - first)
    latencies_ms: list[list[float]] = [[] for _ in range(count)]
    reads = [0] * count
    failed = [0] * count

    def bucket(at_ms: float) -> int | None:
        index = int((at_ms - fault_at_ms) // bucket_ms) - first
        return index if 0 <= index < count else None

    for attempt in history:
        index = bucket(attempt.end_ms)
        if index is None:
            continue
        if attempt.outcome is Outcome.ACKNOWLEDGED:
            latencies_ms[index].append(attempt.end_ms - attempt.start_ms)
        else:
            failed[index] += 1
    for at_ms in history.read_end_ms:
        if (index := bucket(at_ms)) is not None:
            reads[index] += 1
    per_s = 1000 / bucket_ms
    for values in latencies_ms:
        values.sort()
    return Series(
        bucket_ms=bucket_ms,
        at_s=[round((first + i + 0.5) * bucket_ms / 1000, 4) for i in range(count)],
        writes_per_s=[len(values) * per_s for values in latencies_ms],
        reads_per_s=[n * per_s for n in reads],
        latency_p50_ms=[round(values[len(values) // 2], 2) if values else None for values in latencies_ms],
        latency_max_ms=[round(values[-1], 2) if values else None for values in latencies_ms],
        failed=failed,
    )
