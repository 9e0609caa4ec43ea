"""One PostgreSQL server as its agent sees it: a value, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member


class ServerStatus(StrEnum):
    """What there is of the server."""

    ABSENT = "absent"
    """No data directory that could be started: empty, or half made by a clone or a rewind that did not end."""

    STOPPED = "stopped"
    """A complete data directory without a postmaster."""

    STARTING = "starting"
    """A postmaster that does not accept sessions yet (or a standby whose end of log is not known yet)."""

    STANDBY = "standby"
    PRIMARY = "primary"

    UNRESPONSIVE = "unresponsive"
    """A postmaster that was up and now does not answer the agent in time."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Whom a standby streams from."""

    node: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Replica:
    """One walsender of a primary (pg_stat_replication), already known to be a member by its application_name."""

    member: Member
    state: str
    flush_lsn: Lsn | None
    counted: bool
    """Whether the walsender itself counts this member for synchronous commit (its sync_priority is not 0)."""


@dataclass(frozen=True, slots=True)
class WalSender:
    """The process that holds a node's slot on the server that the node streams from, or did."""

    pid: int
    replied: str | None
    """When the standby spoke last, by its own clock: good for nothing but to see that it has spoken again."""


@dataclass(frozen=True, slots=True)
class ServerView:
    """What one look at the server said. Fields that the status makes meaningless are None or empty.

    ``position`` is the end of the log: of a standby the greater of received and replayed, of a primary what it has
    flushed. ``history`` lists the timelines before the server's own. ``synchronous_names`` is the text in effect.
    """

    status: ServerStatus
    position: Position | None = None
    replay_lsn: Lsn | None = None
    history: History = ()
    upstream_host: str | None = None
    """``host:port`` of the primary_conninfo in effect; None if it is empty."""
    through_slot: bool = True
    """Whether a standby streams through a slot, if it streams: an agent of an older version lets it stream without."""
    walreceiver: bool = False
    """Whether a walreceiver *process* exists, streaming or not."""
    streaming: bool = False
    """Whether that walreceiver is in state streaming."""
    synchronous_names: str | None = None
    replicas: tuple[Replica, ...] = ()


ABSENT_SERVER = ServerView(ServerStatus.ABSENT)
