"""What a drill found, as the object that ``--json`` writes. Durations are milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from holdfast.model.event import Event

PHASES = ("detect", "recruit", "choose", "promote", "barrier", "reroute")
"""The parts of a failover, in order; together they last from the fault to the first acknowledged write."""

PHASE_MEANING = {
    "detect": "until somebody opened a new epoch",
    "recruit": "until enough standbys had stopped listening to the old primary",
    "choose": "until the one with the most log was chosen",
    "promote": "until it had left recovery",
    "barrier": "until its standbys held the new epoch and the register said serving",
    "reroute": "until a client had its first write acknowledged",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cluster(_Part):
    """The cluster that was tried."""

    nodes: int
    durability: str
    postgresql: str
    etcd: str


class Phases(_Part):
    """How long each part of the failover took; a part whose end nobody recorded is 0."""

    detect: NonNegativeFloat = 0.0
    recruit: NonNegativeFloat = 0.0
    choose: NonNegativeFloat = 0.0
    promote: NonNegativeFloat = 0.0
    barrier: NonNegativeFloat = 0.0
    reroute: NonNegativeFloat = 0.0

    def in_order(self) -> list[tuple[str, float]]:
        """Name and duration of each, in order of time."""
        return [(name, getattr(self, name)) for name in PHASES]


class Writes(_Part):
    """What became of the writes. ``lost`` and those after it are None if no primary was there to be asked."""

    acknowledged: int
    lost: int | None
    duplicated: int | None
    unknown: int
    errors: int
    altered: int | None = None
    wrong_errors: int | None = None
    strangers: int | None = None
    seen_then_gone: int | None = None
    unknown_committed: int | None = None
    failed_in_flight: int = 0
    failed_later: int = 0
    sqlstates: dict[str, int] = {}


class Reads(_Part):
    """What became of the reads on the read-only port."""

    answered: int
    errors: int


class Connections(_Part):
    """What became of the client connections; ``dropped`` counts all that were closed on their client."""

    clients: int
    idle: int
    dropped: int
    dropped_writers: int = 0
    dropped_readers: int = 0
    dropped_idle: int = 0
    failed_connects: int = 0


class DrillResult(_Part):
    """One run. The keys of the first block are fixed; tools of others read them."""

    drill: str
    seed: int
    passed: bool
    settings: str
    cluster: Cluster
    rto_ms: NonNegativeFloat
    phases_ms: Phases
    writes: Writes
    connections: Connections
    old_primary: str
    new_primary: str | None
    rejoined: bool
    rejoin_ms: NonNegativeFloat | None
    report: str | None

    problems: tuple[str, ...] = ()
    """Why it did not pass, a sentence each; empty if it passed."""
    variants: tuple[str, ...] = ()
    """What made this run harder than the plain one."""
    reads: Reads = Reads(answered=0, errors=0)
    availability: float = Field(1.0, ge=0, le=1)
    standbys_agree: dict[str, bool] = {}
    """Whether each standby ended with the very rows of the primary."""
    started_at: datetime
    fault_at: datetime
    duration_ms: NonNegativeFloat = 0.0
    rate_per_s: float = 0.0

    def to_json(self) -> str:
        """The object, indented, with a newline at the end."""
        return self.model_dump_json(indent=2) + "\n"


def phases_from_journal(
    events: Sequence[Event],
    *,
    fault_at_ms: float,
    epoch_before: int,
    acknowledged_at_ms: Sequence[float],
) -> Phases:
    """Split the failover by what the journal says of the epochs after ``epoch_before``.

    Each part ends at its event and begins where the one before it ended, so they add up to the time from the fault to
    the first acknowledged write under the new primary. An event that is missing, or older than the one that should
    precede it (clocks of two hosts), gives its part no time, never a negative one. If epochs were opened and given up
    before one served, detection ends with the first of them and the others count as recruiting.
    ``acknowledged_at_ms`` is in order.
    """
    marks = failover_marks(events, epoch_before=epoch_before)
    durations: dict[str, float] = {}
    reached_ms = fault_at_ms
    for name in PHASES[:-1]:
        at_ms = max(reached_ms, marks.get(name, reached_ms))
        durations[name] = round(at_ms - reached_ms, 3)
        reached_ms = at_ms
    if "barrier" in marks:
        first_ms = next((at_ms for at_ms in acknowledged_at_ms if at_ms >= reached_ms), reached_ms)
        durations["reroute"] = round(first_ms - reached_ms, 3)
    return Phases(**durations)


def failover_marks(events: Sequence[Event], *, epoch_before: int) -> dict[str, float]:
    """When each part (but the last) ended, as far as the journal says, in Unix milliseconds."""
    later = sorted((e for e in events if e.epoch > epoch_before), key=lambda e: e.at_ms)
    opened = [e for e in later if e.kind == "epoch.opened"]
    serving = next((e for e in later if e.kind == "epoch.serving"), None)
    epoch = serving.epoch if serving is not None else max((e.epoch for e in opened), default=epoch_before)
    own = [e for e in later if e.epoch == epoch and (serving is None or e.at_ms <= serving.at_ms)]
    chosen = [e for e in own if e.kind == "candidate.chosen"]
    promoted = [e for e in own if e.kind == "primary.promoted"]
    joined = [e for e in own if e.kind == "recruit.joined" and (not chosen or e.at_ms <= chosen[-1].at_ms)]
    ends = {
        "detect": opened[:1],
        "recruit": joined[-1:],
        "choose": chosen[-1:],
        "promote": promoted[-1:],
        "barrier": [serving] if serving is not None else [],
    }
    return {name: found[0].at_ms for name, found in ends.items() if found}


def rejoined_at_ms(events: Sequence[Event], node: str, *, epoch_before: int) -> float | None:
    """When the journal says that ``node`` was back as a standby, or None."""
    for event in events:
        back = event.kind == "node.rejoined" and event.epoch > epoch_before
        if back and event.detail.get("node", event.source) == node:
            return event.at_ms
    return None
