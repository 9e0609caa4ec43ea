"""One look at a running server: a single statement, turned into a ``ServerView``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member
from holdfast.model.server import Replica, ServerStatus, ServerView
from holdfast.postgres.config import REPLICATION_ROLE, upstream_of
from holdfast.postgres.instance import Instance
from holdfast.postgres.session import Session
from holdfast.postgres.timelines import history_before, located, read_history

# What tells that the log's end is known is read before the positions: a CTE's row is made before the select list.
_LOOK = f"""
WITH seen AS MATERIALIZED (
  SELECT pg_is_in_recovery() AS standby,
         max(wait_event) FILTER (WHERE backend_type = 'startup') AS startup_waits_for,
         bool_or(wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin'))
           FILTER (WHERE backend_type = 'startup') AS replay_blocked,
         array_agg(pid) FILTER (WHERE backend_type = 'walreceiver') AS walreceivers,
         max(wait_event) FILTER (WHERE backend_type = 'walreceiver') AS walreceiver_waits_for
    FROM pg_stat_activity
)
SELECT standby, startup_waits_for, walreceivers,
       (SELECT status FROM pg_stat_wal_receiver),
       (SELECT walreceiver_waits_for = 'WalReceiverMain' OR last_msg_send_time <> last_msg_receipt_time
          FROM pg_stat_wal_receiver),
       CASE WHEN NOT standby THEN pg_current_wal_flush_lsn()::text END,
       CASE WHEN NOT standby THEN pg_walfile_name(pg_current_wal_flush_lsn()) END,
       pg_last_wal_replay_lsn()::text,
       pg_last_wal_receive_lsn()::text,
       current_setting('synchronous_standby_names'),
       current_setting('primary_conninfo'),
       pg_size_bytes(current_setting('wal_segment_size')),
       extract(epoch FROM pg_conf_load_time())::text,
       (SELECT json_agg(json_build_array(application_name, state, flush_lsn::text, sync_priority))
          FROM pg_stat_replication WHERE usename = '{REPLICATION_ROLE}'),
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
       standby AND coalesce(replay_blocked, false), current_setting('primary_slot_name')
  FROM seen
"""
_WAITS_FOR_WALRECEIVER = "RecoveryWalStream"
_WAITS_TO_TRY_AGAIN = "RecoveryRetrieveRetryInterval"
_TIMELINE = re.compile(r"\A[0-9A-F]{8}")


@dataclass(frozen=True, slots=True)
class Look:
    """What the statement said, before the log's files are looked at."""

    standby: bool
    startup_waits_for: str | None
    walreceivers: tuple[int, ...]
    walreceiver_status: str | None
    heard: bool
    """Whether the upstream answered this walreceiver with log; its status says streaming from the connection on."""
    flushed: Lsn | None
    flushed_file: str | None
    replayed: Lsn | None
    received: Lsn | None
    synchronous_names: str
    primary_conninfo: str
    segment_bytes: int
    configured_at: str
    replicas: tuple[Replica, ...]
    replay_paused: bool
    replay_blocked: bool
    """Whether the startup process waits for a session (a recovery conflict)."""
    primary_slot_name: str

    @property
    def shows_end(self) -> bool:
        """Whether the end of the log is known from this look alone.

        A walreceiver is started only once the startup process has come to the end of the local log.
        """
        waits = self.startup_waits_for in (_WAITS_FOR_WALRECEIVER, _WAITS_TO_TRY_AGAIN)
        return waits or self.walreceiver_status is not None

    @property
    def end(self) -> Lsn | None:
        """Where a standby's log ends.

        What was received counts, unless the startup process waits to try again, and there is no walreceiver: it has
        read the whole log after the last walreceiver left, and what lies behind the last replayed record is a part of
        a record, no commit. (While it waits for a walreceiver, it may just not have run since more log came.)
        """
        if self.startup_waits_for == _WAITS_TO_TRY_AGAIN and not self.walreceivers:
            return self.replayed
        ends = [lsn for lsn in (self.received, self.replayed) if lsn is not None]
        return max(ends) if ends else None


async def take_look(session: Session, deadline_ms: int) -> Look:
    """Ask the server; raises NotAccepting, NoAnswer or PostgresError."""
    (row,) = await session.fetch(_LOOK, deadline_ms=deadline_ms)
    return Look(
        standby=row[0],
        startup_waits_for=row[1],
        walreceivers=tuple(row[2] or ()),
        walreceiver_status=row[3],
        heard=bool(row[4]),
        flushed=_lsn(row[5]),
        flushed_file=row[6],
        replayed=_lsn(row[7]),
        received=_lsn(row[8]),
        synchronous_names=row[9],
        primary_conninfo=row[10],
        segment_bytes=row[11],
        configured_at=row[12],
        replicas=_replicas(row[13] or ()),
        replay_paused=row[14],
        replay_blocked=row[15],
        primary_slot_name=row[16],
    )


async def position_of(look: Look, instance: Instance) -> tuple[Position, History]:
    """Where the log of a server ends; raises PostgresError if its files do not tell, or not in time."""
    timeline = None if look.standby else _timeline_of(look)
    if timeline is not None and look.flushed is not None and instance.own_history is not None:
        known, history = instance.own_history
        if known == timeline:
            return Position(timeline, look.flushed), history
    find = partial(_position_of, look, instance.layout.wal_dir)
    position, history = await instance.disk.call("log", find, instance.timeouts.statement_ms)
    if timeline is not None:
        instance.own_history = timeline, history
    return position, history


def view_of(look: Look, position: Position, history: History) -> ServerView:
    """The view of a server whose log's end is known."""
    return ServerView(
        status=ServerStatus.STANDBY if look.standby else ServerStatus.PRIMARY,
        position=position,
        replay_lsn=look.replayed if look.standby else None,
        history=history,
        upstream_host=upstream_of(look.primary_conninfo) if look.standby else None,
        through_slot=bool(look.primary_slot_name),
        walreceiver=bool(look.walreceivers),
        streaming=look.walreceiver_status == "streaming" and look.heard,
        synchronous_names=look.synchronous_names,
        replicas=look.replicas,
    )


def _position_of(look: Look, wal_dir: Path) -> tuple[Position, History]:
    if look.standby:
        if look.end is None:
            raise PostgresError("the standby does not know yet where its log ends")
        return located(wal_dir, look.end, look.segment_bytes)
    assert look.flushed is not None
    timeline = _timeline_of(look)
    history = read_history(wal_dir, timeline)
    if history is None:
        raise PostgresError(f"the history file of the primary's own timeline {timeline} is missing in {wal_dir}")
    return Position(timeline, look.flushed), history_before(timeline, history)


def _timeline_of(look: Look) -> int:
    """The timeline that a primary leads."""
    match = _TIMELINE.match(look.flushed_file or "")
    if match is None:
        raise PostgresError(f"PostgreSQL names its log file {look.flushed_file!r}")
    return int(match[0], 16)


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)


def _replicas(rows: Any) -> tuple[Replica, ...]:
    found = []
    for name, state, flushed, priority in rows:
        member = Member.parse(name)
        if member is not None:
            found.append(Replica(member, state, _lsn(flushed), bool(priority)))
    return tuple(found)
