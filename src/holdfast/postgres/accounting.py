"""What the log beyond the fork held, copied and listed before a rewind destroys it (protocol.md, "Forensics").

In this order: copy, list, salvage; then the directory may be touched.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import structlog

from holdfast.model.errors import PostgresError
from holdfast.model.lost import LostLog, LostTransaction
from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member
from holdfast.postgres.control import dump_arguments, read_control
from holdfast.postgres.dump import each_line
from holdfast.postgres.files import write_durably
from holdfast.postgres.instance import Instance
from holdfast.postgres.layout import free_bytes
from holdfast.postgres.salvage.run import salvage
from holdfast.postgres.timelines import read_history, segment_name
from holdfast.postgres.waldump import DivergentLog

_log = structlog.get_logger(__name__)

ACCOUNT_FILE = "lost.json"
COPY_BYTES_MAX = 1024**3
"""More divergent log than this is listed, but not copied."""
KEPT_ACCOUNTS = 10
LOOK_BACK_BYTES = 64 * 1024 * 1024
"""How far before the fork is read for what a transaction wrote that was committed beyond it."""
_SERVER_LOG_BYTES = 1024 * 1024
_NAMES = """
SELECT t || '/' || d || '/' || f, 'postgres.' || n.nspname || '.' || c.relname
  FROM unnest(%s::oid[], %s::oid[], %s::oid[]) AS k (t, d, f)
  JOIN pg_database ON pg_database.oid = d AND datname = current_database()
  JOIN pg_class c ON c.oid = pg_filenode_relation(t, f)
  JOIN pg_namespace n ON n.oid = c.relnamespace
"""


@dataclass(frozen=True, slots=True)
class Fork:
    """Where the own log left the source's: the timeline whose log is divergent from ``lsn`` on."""

    timeline: int
    lsn: Lsn


def fork_of(own_end: Position, own_history: History, timeline: int, history: History) -> Fork:
    """Where two logs part; ``own_end`` is not on the other's history."""
    others = {s.timeline: s.switch_lsn for s in history}
    if own_end.timeline in others:
        return Fork(own_end.timeline, others[own_end.timeline])
    for switch in reversed(own_history):
        if switch.timeline in others:
            return Fork(own_end.timeline, min(switch.switch_lsn, others[switch.timeline]))
        if switch.timeline == timeline:
            return Fork(own_end.timeline, switch.switch_lsn)
    raise PostgresError(f"timelines {own_end.timeline} and {timeline} have nothing in common")


async def account(
    instance: Instance,
    own_end: Position,
    timeline: int,
    history: History,
    source_conninfo: str,
    progress: Callable[[str, float | None], None],
) -> LostLog:
    """Copy and list the log beyond the fork of the stopped directory; raises PostgresError and OSError."""
    wal_dir = instance.layout.wal_dir
    own_history = await asyncio.to_thread(read_history, wal_dir, own_end.timeline) or ()
    fork = fork_of(own_end, own_history, timeline, history)
    incarnation = instance.layout.incarnation() or "00000000"
    target = instance.state_dir / "evidence" / f"epoch-{timeline}-{incarnation}"
    progress("copying the log beyond the fork", None)
    control = await read_control(instance.installation, instance.layout.data_dir, instance.user)
    left_out = await asyncio.to_thread(_copy, instance, target, fork, control.segment_bytes)
    progress("listing the transactions beyond the fork", None)
    log, unread = await _list(instance, fork, own_end.lsn, control.segment_bytes)
    named = await _named(log.transactions(), source_conninfo)
    lost = LostLog(
        member=Member(instance.node, incarnation),
        epoch=timeline,
        timeline=fork.timeline,
        fork_lsn=fork.lsn,
        end_lsn=own_end.lsn,
        evidence_dir=str(target),
        transactions=named,
        left_out=tuple(left_out),
        unread=unread,
        next_xid=log.next_xid,
    )
    await asyncio.to_thread(write_durably, target / ACCOUNT_FILE, lost.to_json(), None)
    await asyncio.to_thread(_prune, target.parent)
    if lost.of_clients and instance.settings.salvage:
        lost = await salvage(instance, lost, log, control, progress)
        await asyncio.to_thread(write_durably, target / ACCOUNT_FILE, lost.to_json(), None)
    return lost


def read_accounts(state_dir: Path) -> list[LostLog]:
    """What was accounted for on this node, oldest first; raises RegisterError for one that cannot be read."""
    found = sorted((state_dir / "evidence").glob(f"*/{ACCOUNT_FILE}"), key=lambda p: p.stat().st_mtime)
    return [LostLog.from_json(path.read_bytes()) for path in found]


def _segments(instance: Instance, timeline: int, start: Lsn, segment_bytes: int) -> list[Path]:
    first = segment_name(timeline, start, segment_bytes)
    names = f"{timeline:08X}" + "?" * 16
    return sorted(p for p in instance.layout.wal_dir.glob(names) if p.name >= first)


def _copy(instance: Instance, target: Path, fork: Fork, segment_bytes: int) -> list[str]:
    layout, left_out = instance.layout, []
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    segments = _segments(instance, fork.timeline, fork.lsn, segment_bytes)
    needed_bytes = sum(p.stat().st_size for p in segments)
    if needed_bytes > COPY_BYTES_MAX or 2 * needed_bytes > free_bytes(target):
        left_out.append(f"{needed_bytes:,} bytes of log: more than may be copied, or too little room for them")
        segments = []
    (target / "pg_wal").mkdir(exist_ok=True)
    histories = layout.wal_dir.glob("*.history")
    configuration = (p for p in layout.data_dir.glob("*.conf") if p.is_file())
    for path in (*segments, *histories):
        shutil.copy2(path, target / "pg_wal" / path.name)
    for path in (layout.data_dir / "global" / "pg_control", *configuration):
        shutil.copy2(path, target / path.name)
    logs = sorted(layout.log_dir.glob("*.log"), key=lambda p: p.stat().st_mtime)
    for path in logs[-1:]:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _SERVER_LOG_BYTES))
            (target / "server.log").write_bytes(file.read())
    return left_out


def _prune(directory: Path) -> None:
    accounts = sorted((p for p in directory.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for old in accounts[:-KEPT_ACCOUNTS]:
        shutil.rmtree(old, ignore_errors=True)


async def _list(instance: Instance, fork: Fork, end: Lsn, segment_bytes: int) -> tuple[DivergentLog, str]:
    """What was read, and why not all of it was."""
    kept = _segments(instance, fork.timeline, Lsn(0), segment_bytes)
    if not kept:
        raise PostgresError(f"no log of timeline {fork.timeline} is left to list")
    name = kept[0].name
    oldest = Lsn(int(name[8:16], 16) * 2**32 + int(name[16:], 16) * segment_bytes)
    start = max(oldest, Lsn(max(0, fork.lsn - LOOK_BACK_BYTES)))
    log = DivergentLog(fork.lsn)
    arguments = dump_arguments(instance.layout.wal_dir, fork.timeline, start, end, segment_bytes)
    status, words = await each_line(instance, arguments, log.take)
    if status != 0 and "invalid record length" not in words and "invalid magic number" not in words:
        raise PostgresError(f"pg_waldump could not read the log beyond the fork: {words}")
    if oldest > fork.lsn:
        words = f"its log from {fork.lsn} to {oldest} is gone. {words}".rstrip()
    return log, words if status != 0 or oldest > fork.lsn else ""


async def _named(listed: tuple[LostTransaction, ...], conninfo: str) -> tuple[LostTransaction, ...]:
    """With names for the relations of database ``postgres``, where Holdfast keeps its own; the others keep numbers."""
    keys = sorted({key for t in listed for key in t.relations})
    numbers: list[list[int]] = [[int(key.split("/")[i]) for key in keys] for i in range(3)]
    names: dict[str, str] = {}
    try:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            cursor: psycopg.AsyncCursor[Any] = await connection.execute(_NAMES.encode(), numbers)
            names = dict(await cursor.fetchall())
    except psycopg.Error as error:
        _log.warning("relations have no names", error=str(error))
    return tuple(
        replace(t, relations={names.get(key, key): tuples for key, tuples in t.relations.items()}) for t in listed
    )
