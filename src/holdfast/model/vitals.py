"""How a node's server, its disks and its machine do, as its agent measures them; told to peers in its report.

Clocks of two machines share no zero, so everything that has a time carries an age, as of the report.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Commits:
    """How one kind of heartbeat commit goes on a primary."""

    age_ms: int | None = None
    """Since one last succeeded."""
    latency_ms: int | None = None
    """What that one took."""
    pending_ms: int | None = None
    """For how long one has been under way; None if none is."""
    error: str | None = None
    """Why the last one failed, if none has succeeded since."""


@dataclass(frozen=True, slots=True)
class Space:
    """One file system. ``file_system`` is the same text for two nodes only if both see the same one on one machine."""

    free_bytes: int
    total_bytes: int
    file_system: str


@dataclass(frozen=True, slots=True)
class Pressure:
    """Share of the last ten seconds in which something waited for a resource, in percent (/proc/pressure, "some")."""

    cpu: float
    io: float
    memory: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """What an agent measures beside its looks at the server; None: not measured (yet), or not on such a server."""

    local: Commits = Commits()
    """Heartbeat rows committed with ``synchronous_commit = local``: the server and its disk alone."""
    quorum: Commits = Commits()
    """Heartbeat rows committed with ``synchronous_commit = on``: the standbys too."""
    log_age_ms: int | None = None
    """Since the end of the log last moved."""
    log_waits: int | None = None
    """How many sessions wait for the log to be written or brought to the disk."""
    sessions: int | None = None
    """Client sessions, and how many of them run a statement."""
    active_sessions: int | None = None
    sessions_max: int | None = None
    data_space: Space | None = None
    log_space: Space | None = None
    storage_ms: int | None = None
    """What the agent's own small write to the data file system took, or has taken so far."""
    storage_pending_ms: int | None = None
    """For how long that write has been under way; None if none is."""
    disk_still_ms: int | None = None
    """For how long the device below the data file system was watched to complete no write; None: it tells nothing."""
    pressure: Pressure | None = None
    upstream_age_ms: int | None = None
    """On a standby: since its walreceiver last heard of the primary."""
    local_seen_age_ms: int | None = None
    """On a standby: since it saw a new heartbeat row of the first kind in its own copy."""
    quorum_seen_age_ms: int | None = None
    """The same of the second kind."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a server says when it is asked how busy it is; times are the server's own."""

    sessions: int
    active_sessions: int
    sessions_max: int
    log_waits: int
    upstream_age_ms: int | None = None
    heartbeats: tuple[str | None, str | None] = (None, None)
    """The time in the heartbeat row of each kind, local and quorum, as text: only whether it changes matters."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a look at the machine and the file systems of a server says."""

    data: Space | None = None
    log: Space | None = None
    pressure: Pressure | None = None
