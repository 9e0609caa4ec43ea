"""The parts of a failover, timed from the journal: which step took how long, and when each ended."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.actions import Awaited
from holdfast.core.causality import in_order
from holdfast.model.event import Event

PHASES = ("detect", "recruit", "choose", "promote", "barrier", "reroute")
"""The parts of a failover, in order; together they last from the fault to the first acknowledged write."""

ENDS = {
    "detect": "epoch.opened",
    "recruit": "recruit.joined",
    "choose": "candidate.chosen",
    "promote": "primary.promoted",
    "barrier": "epoch.serving",
}
"""The kind of journal entry that ends each part; the last one ends with a client's write."""

PHASE_MEANING = {
    "detect": "until somebody opened a new epoch",
    "recruit": "until enough standbys had stopped listening to the old primary",
    "choose": "until the one with the most log was chosen",
    "promote": "until it had left recovery",
    "barrier": "until its standbys held the new epoch and the register said serving",
    "reroute": "until a client had its first write acknowledged",
}


def phase_durations(
    events: Sequence[Event], *, began_at_ms: float, epoch_before: int, acknowledged_at_ms: Sequence[float] = ()
) -> dict[str, float]:
    """Split the failover by what the journal says of the epochs after ``epoch_before``; milliseconds, as in PHASES.

    Each part ends at its event and begins where the one before it ended, so they add up to the time from the beginning
    to the first acknowledged write under the new primary. An event that is missing, or older than the one that should
    precede it (clocks of two hosts), gives its part no time, never a negative one. If an epoch was given up, the time
    until the next one was opened belongs to the part that did not end, and the parts of all epochs are added.
    ``acknowledged_at_ms`` is in order; empty if nobody knows.
    """
    durations = dict.fromkeys(PHASES, 0.0)
    pending, reached_ms, serves = "detect", began_at_ms, False
    for marks in _marks_by_epoch(events, epoch_before):
        for name, at_ms in marks.items():
            ended = pending if name == "detect" else name
            durations[ended] += max(0.0, at_ms - reached_ms)
            reached_ms = max(reached_ms, at_ms)
            pending = PHASES[PHASES.index(name) + 1]
            serves = name == "barrier"
    if serves:
        first_ms = next((at_ms for at_ms in acknowledged_at_ms if at_ms >= reached_ms), reached_ms)
        durations["reroute"] = first_ms - reached_ms
    return {name: round(ms, 3) for name, ms in durations.items()}


APPROVAL_MEANING = "until a person approved the failover, as the policy asks"
"""Of a part that only failovers have which waited for it; `phase_durations` counts it to detection."""


def approval_wait_ms(events: Sequence[Event], *, epoch_before: int) -> float:
    """For how long the end of the epoch waited for a person, from the first voter that asked; 0 if nobody was asked."""
    ended = [e.time_ms for e in events if e.kind == ENDS["detect"] and e.epoch > epoch_before]
    asked = [e.time_ms for e in events if e.kind == "waiting" and e.detail.get("what") == Awaited.APPROVAL]
    until_ms = min(ended, default=None)
    if until_ms is None or not asked:
        return 0.0
    return max(0.0, until_ms - min(asked))


def failover_marks(events: Sequence[Event], *, epoch_before: int) -> dict[str, float]:
    """When each part (but the last) ended, as far as the journal says, in Unix milliseconds.

    Of several epochs detection is that of the first and all else that of the last.
    """
    by_epoch = _marks_by_epoch(events, epoch_before)
    if not by_epoch:
        return {}
    return by_epoch[-1] | {name: at_ms for name, at_ms in by_epoch[0].items() if name == "detect"}


def _marks_by_epoch(events: Sequence[Event], epoch_before: int) -> list[dict[str, float]]:
    """For each epoch up to the first that served: when its parts ended, in the order of PHASES."""
    found: list[dict[str, float]] = []
    for epoch in sorted({e.epoch for e in events if e.epoch > epoch_before}):
        own = in_order(e for e in events if e.epoch == epoch)
        by_kind = {name: [e.time_ms for e in own if e.kind == kind] for name, kind in ENDS.items()}
        if by_kind["barrier"]:
            by_kind = {n: [ms for ms in times_ms if ms <= by_kind["barrier"][0]] for n, times_ms in by_kind.items()}
        if by_kind["choose"]:
            # A node that joins after the choice (the old primary, say) did not hold it up.
            by_kind["recruit"] = [ms for ms in by_kind["recruit"] if ms <= by_kind["choose"][-1]]
        # The epoch was opened, and served, the first time that somebody said so; the rest lasted until the last time.
        marks = {n: t[0] if n in ("detect", "barrier") else t[-1] for n, t in by_kind.items() if t}
        if marks:
            found.append(marks)
        if "barrier" in marks:
            break
    return found
