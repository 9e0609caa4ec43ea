"""What a drill found, as the object that ``--json`` writes. Durations are milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from holdfast.core.phases import PHASES
from holdfast.model.event import Event


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
    lost_by_choice: int | None = None
    """Missing, of sessions that had lowered synchronous_commit."""
    failed_in_flight: int = 0
    failed_later: int = 0
    sqlstates: dict[str, int] = {}


class LostTransactions(_Part):
    """The list of what was lost, and the rows of it, held against what the clients know."""

    known: int
    """Transactions that their clients were told of (committed, or prepared), and that the new primary does not have."""
    listed: int
    """Transactions in the list, those included whose clients got no answer."""
    matched: int
    """Known ones that are listed: must be all of them."""
    salvaged_rows: int
    """Rows of the listed ones that were read, or rather what was done to them."""
    wrong_rows: int
    """Rows that differ from what a client wrote, are missing, or were written by nobody: must be 0."""
    strangers: int = 0
    """Listed ones that no client knows of: must be 0."""
    not_brought_back: int = 0
    """Rows that the script, read and run by the drill, did not bring back: must be 0."""
    kinds: dict[str, int] = {}
    """The lost ones of the clients that keep books, by what they did."""


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
    """The page of the run, if one was written."""
    retrospectives: tuple[str, ...] = ()
    """The page of each failover that it caused, as `holdfast incident report` writes it."""

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
    fault: str = ""
    """What was broken, as a sentence; empty for the plain kill of the primary's PostgreSQL."""
    injected: bool = True
    """Whether it was seen from outside that the fault was there; a drill that could not be tried is *not run*."""
    evidence: tuple[str, ...] = ()
    """What was seen of each step, and when, relative to the first."""
    failovers: int | None = None
    """How many new epochs served."""
    stale_reads: int | None = None
    """Reads on the writable port that went back in time: must be 0."""
    two_leaders: int | None = None
    """Acknowledgements that prove two leaders at once: must be 0."""
    fresh_reads: int = 0
    """Reads on the writable port that were answered."""
    fresh_read_errors: int = 0
    lost_transactions: LostTransactions | None = None
    """None for a drill that may lose nothing."""
    nothing_lost_proved: bool | None = None
    """Whether the cluster itself says so (`holdfast lost show`): must not be true if something is lost. None: it was
    not asked, or did not answer."""
    injection_ms: NonNegativeFloat = 0.0
    """How long the injection itself took; it is part of every time that is counted from the fault."""

    def to_json(self) -> str:
        """The object, indented, with a newline at the end."""
        return self.model_dump_json(indent=2) + "\n"


def rejoined_at_ms(events: Sequence[Event], node: str, *, epoch_before: int) -> float | None:
    """When the journal says that ``node`` was back as a standby, or None."""
    for event in events:
        back = event.kind == "node.rejoined" and event.epoch > epoch_before
        if back and event.detail.get("node", event.source) == node:
            return event.at_ms
    return None
