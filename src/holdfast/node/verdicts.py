"""Changes of mind about the primary, noted in the journal with the evidence."""

from __future__ import annotations

from pydantic import JsonValue

from holdfast.model.report import Reading, Verdict, VerdictKind
from holdfast.node.clock import monotonic_ms
from holdfast.store.journal import Journal

QUIET_MS = 30_000
"""A primary that is slow, and well, and slow again is noted at most this often: the journal has an end."""
_HARMLESS = {VerdictKind.HEALTHY, VerdictKind.OVERLOADED}


class VerdictNotes:
    """What this observer last noted. What it thinks while it has not seen enough is not worth an entry."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._last: Verdict | None = None
        self._noted_ms: int | None = None

    def note(self, verdict: Verdict | None) -> None:
        """Note a verdict of another kind than the last, or the first one that is not good."""
        before = self._last
        if verdict is None or verdict.kind is VerdictKind.UNKNOWN:
            return
        same = before is not None and (before.about, before.kind) == (verdict.about, verdict.kind)
        now_ms = monotonic_ms()
        harmless = before is not None and before.about == verdict.about and {before.kind, verdict.kind} <= _HARMLESS
        if harmless and self._noted_ms is not None and now_ms - self._noted_ms < QUIET_MS:
            return
        self._last = verdict
        if same or (verdict.kind is VerdictKind.HEALTHY and (before is None or before.about != verdict.about)):
            return
        self._noted_ms = now_ms
        self._journal.record(
            "verdict.changed",
            verdict.epoch,
            verdict.rule,
            about=verdict.about.node,
            verdict=verdict.kind.value,
            evidence=verdict.evidence,
            readings=[_entry(reading) for reading in verdict.readings],
        )


def _entry(reading: Reading) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {"source": reading.source.value, "age_ms": reading.age_ms, "says": reading.says}
    return {**entry, "figures": dict(reading.figures)} if reading.figures else entry
