"""What an agent tells its peers and people about its node (``GET /node``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member
from holdfast.model.server import ServerStatus
from holdfast.model.vitals import Vitals


class VerdictKind(StrEnum):
    """What an observer holds of the primary."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    """Not observed for long enough to say."""
    DEAD = "dead"
    """Its process is gone and its host is there to say so."""
    UNREACHABLE = "unreachable"
    """Silence on every path."""
    HUNG = "hung"
    """Its host answers, but it accepts no session or commits nothing."""
    STORAGE_STALLED = "storage stalled"
    """It commits nothing, and its disk is why."""
    DISK_FULL = "disk full"
    """It has no room left for its data or its log."""
    OVERLOADED = "overloaded"
    """Slow, but it makes progress: a failover would help nobody."""
    STANDBYS_AT_FAULT = "standbys at fault"
    """It commits by itself, but its standbys confirm nothing: a failover would make it worse."""


_LOST = (VerdictKind.DEAD, VerdictKind.UNREACHABLE, VerdictKind.HUNG, VerdictKind.STORAGE_STALLED)


class Source(StrEnum):
    """Where a piece of evidence comes from."""

    AGENT = "agent"
    """The agent beside the primary, over HTTP."""
    FRESH_SESSION = "fresh session"
    """A session opened just now, over TCP."""
    HELD_SESSION = "held session"
    """A session opened earlier."""
    LOCAL_COMMIT = "local commit"
    """A heartbeat row that needs the primary alone."""
    QUORUM_COMMIT = "quorum commit"
    """A heartbeat row that needs the standbys too."""
    REPLICATION = "replication"
    """What the observer's own standby receives."""
    DISK = "disk"
    LOAD = "load"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Reading:
    """One piece of evidence: how old it was when the verdict was formed (None: never obtained), and what it said."""

    source: Source
    age_ms: int | None
    says: str
    figures: dict[str, float] = field(default_factory=dict)
    """The same for programs, where there are figures: ``cpu_waits_percent``, ``free_bytes``, ``sessions``..."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict, the evidence that decided it, the rule that turned the one into the other, and all other evidence.

    ``room_elsewhere``: of a full disk, whether a standby that could take over is known to have another disk with room.
    """

    about: Member
    epoch: int
    kind: VerdictKind
    evidence: str
    rule: str = ""
    readings: tuple[Reading, ...] = ()
    room_elsewhere: bool = False

    @property
    def is_trouble(self) -> bool:
        """Whether something is wrong, be it a reason for a failover or not."""
        return self.kind not in (VerdictKind.HEALTHY, VerdictKind.UNKNOWN)

    @property
    def calls_for_failover(self) -> bool:
        """Whether a majority that holds this verdict opens an epoch."""
        return self.kind in _LOST or (self.kind is VerdictKind.DISK_FULL and self.room_elsewhere)


class ProxyOutcome(StrEnum):
    """What a proxy met when it last used the primary."""

    ANSWERS = "answers"
    REFUSED = "refused a connection"
    RESET = "ended sessions"
    SILENT = "does not answer"


@dataclass(frozen=True, slots=True)
class ProxySight:
    """What a proxy says of the primary: evidence, never a vote. ``heard_ms`` is the observer's, monotonic."""

    proxy: str
    node: str
    epoch: int
    outcome: ProxyOutcome
    clients_waiting: int
    heard_ms: int = 0

    def to_json(self) -> bytes:
        """The stored form."""
        return _PROXY_SIGHT.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> ProxySight:
        """Read the stored form; raises RegisterError."""
        try:
            return _PROXY_SIGHT.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"a proxy's record cannot be read: {error.errors()[0]['msg']}") from error


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A member as the primary sees it."""

    member: Member
    state: str
    flush_lsn: Lsn | None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node, as its agent sees it at one moment."""

    node: str
    member: Member | None
    cluster_id: str | None
    promised: int
    status: ServerStatus
    situation: str
    duty: str
    rule: str
    position: Position | None
    replay_lsn: Lsn | None
    history: History
    upstream: str | None
    streaming: bool
    synchronous_names: str | None
    replicas: tuple[ReplicaReport, ...]
    register_epoch: int
    store_connected: bool
    verdict: Verdict | None
    alarm: str | None
    version: str
    progress: str | None = None
    """What a clone or a rewind under way is doing, and how far it is."""
    vitals: Vitals | None = None
    system_identifier: str | None = None
    """Of the data directory, as PostgreSQL prints it."""
    waiting: str | None = None
    """What a failover waits for: a person's word, or nodes that do not answer."""
    waiting_ms: int | None = None
    """For how long it has waited."""
    isolated: str | None = None
    """Who is kept out of its PostgreSQL, and why, while it is cut off."""

    def to_json(self) -> bytes:
        """The form on the wire."""
        return _REPORT.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> NodeReport:
        """Read the form on the wire; raises RegisterError."""
        try:
            return _REPORT.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"a peer's report cannot be read: {error.errors()[0]['msg']}") from error


_REPORT = TypeAdapter(NodeReport)
_PROXY_SIGHT = TypeAdapter(ProxySight)
