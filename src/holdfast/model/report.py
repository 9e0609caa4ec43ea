"""What an agent tells its peers and people about its node (``GET /node``)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member
from holdfast.model.server import ServerStatus


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
    """Its host answers, but it accepts no session."""

    @property
    def calls_for_failover(self) -> bool:
        """Whether a majority that holds this verdict opens an epoch."""
        return self in (VerdictKind.DEAD, VerdictKind.UNREACHABLE, VerdictKind.HUNG)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict with the evidence it rests on."""

    about: Member
    epoch: int
    kind: VerdictKind
    evidence: str


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
