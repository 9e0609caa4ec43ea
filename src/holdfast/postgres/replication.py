"""Leading and following: what the protocol makes a running server do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Collection, Mapping
from functools import partial

import structlog

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn, Position
from holdfast.model.register import Member, Quorum
from holdfast.model.server import Upstream, WalSender
from holdfast.postgres.anchor import ANCHOR
from holdfast.postgres.config import BARRIER, SLOT_PREFIX, Runtime, slot_of
from holdfast.postgres.instance import Instance
from holdfast.postgres.look import Look, position_of, take_look
from holdfast.postgres.process import child_titles
from holdfast.postgres.session import APPLICATION_NAME
from holdfast.postgres.survey import HEARTBEAT, LOCAL_ROW
from holdfast.postgres.timelines import read_history, write_placeholders

_log = structlog.get_logger(__name__)
_POLL_S = 0.003
_WALRECEIVER = re.compile(r"\Apostgres: .*\bwalreceiver\b")

_EPOCH_RECORD = """
INSERT INTO holdfast.epochs (epoch, fork_lsn, next_xid, at)
SELECT %s, %s::pg_lsn,
       coalesce((SELECT min(running::text::bigint) FROM pg_snapshot_xip(pg_current_snapshot()) AS running
                  WHERE running::xid NOT IN (SELECT transaction FROM pg_prepared_xacts)),
                pg_snapshot_xmax(pg_current_snapshot())::text::bigint)::text,
       clock_timestamp()
ON CONFLICT (epoch) DO NOTHING
"""
"""The end of recovery sets xmax to the next xid. What runs already, and was not prepared before, are sessions that were
opened on the standby: the first of their ids is the next xid then. xmin would be that of the oldest prepared one."""
_ACTIVE_TRANSACTIONS = f"""
SELECT count(*) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
   AND (xact_start IS NOT NULL OR state_change > clock_timestamp() - make_interval(secs => %s))
   AND application_name <> '{APPLICATION_NAME}'
"""
_END_READERS = f"""
SELECT CASE WHEN state = 'active' THEN pg_cancel_backend(pid) ELSE pg_terminate_backend(pid) END
  FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
   AND application_name <> '{APPLICATION_NAME}'
"""
_SLOTS = """
SELECT slot_name, coalesce(wal_status, 'lost') = 'lost', active FROM pg_replication_slots
 WHERE slot_type = 'physical' AND slot_name LIKE 'holdfast\\_%'
"""
_SENDERS = """
SELECT s.slot_name, s.active_pid, r.reply_time::text
  FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
 WHERE s.slot_type = 'physical' AND s.slot_name LIKE 'holdfast\\_%'
"""
_END_SENDER = """
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active_pid = %s
"""
_ADVANCE = """
SELECT pg_replication_slot_advance(s.slot_name, w.lsn)
  FROM unnest(%s::text[], %s::pg_lsn[]) AS w (slot, lsn)
  JOIN pg_replication_slots s ON s.slot_name = w.slot
 WHERE s.slot_type = 'physical' AND NOT s.active AND s.restart_lsn < w.lsn AND s.wal_status <> 'lost'
"""


_CHECKPOINT = """
SELECT checkpoint_lsn::text, redo_lsn::text,
       (SELECT min(restart_lsn)::text FROM pg_replication_slots WHERE slot_name = ANY(%s) AND wal_status <> 'lost')
  FROM pg_control_checkpoint() WHERE NOT pg_is_in_recovery()
"""


_LAST_MESSAGE = """
SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time)::float8, written_lsn::text
  FROM pg_stat_wal_receiver WHERE last_msg_receipt_time IS NOT NULL AND written_lsn IS NOT NULL
"""


async def detach(instance: Instance) -> Position:
    """The recruit step (protocol.md, "Failover", 2). See ``Server.detach``."""
    look = await take_look(instance.session("look"), instance.timeouts.statement_ms)
    _require_standby(look)
    if instance.promoting_to is not None:
        await instance.kill()
        raise PostgresError("a standby that was told to promote cannot be told otherwise: it was stopped")
    await _ask_walreceiver(instance)
    wanted = Runtime(synchronous_names=BARRIER, upstream=None, application_name=None, quick_replay=True)
    # The password goes first: a walreceiver that is started from here on, by a startup process that has not read the
    # new settings yet, cannot log in. One that was started before is among the children we look at next.
    await instance.apply(wanted)
    if look.replay_paused:
        await instance.session("look").fetch("SELECT pg_wal_replay_resume()")
    await _wait_until_no_walreceiver(instance)
    end = await _wait_until_end_known(instance)
    instance.heard_s = instance.hearing.last_s(end.lsn, asyncio.get_running_loop().time())
    return end


async def _ask_walreceiver(instance: Instance) -> None:
    """When its last message came, if there is one; a message that comes later moves the end of the log."""
    rows = await instance.session("look").fetch(_LAST_MESSAGE, deadline_ms=instance.timeouts.statement_ms)
    for age_s, written in rows:
        instance.hearing.last(asyncio.get_running_loop().time() - age_s, Lsn.parse(written))


async def _wait_until_no_walreceiver(instance: Instance) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    patience_s = instance.timeouts.walreceiver_exit_ms / 1000
    nameless: set[int] | None = None
    terminated: set[int] = set()
    while True:
        postmaster = instance.running_postmaster()
        titles = await asyncio.to_thread(child_titles, postmaster.pid)
        look = await take_look(instance.session("look"), instance.timeouts.statement_ms)
        _require_standby(look)
        await _clear_conflict(instance, look)
        fresh = {pid for pid, title in titles.items() if not title}
        nameless = fresh if nameless is None else nameless & fresh
        receivers = set(look.walreceivers) | {pid for pid, title in titles.items() if _WALRECEIVER.match(title)}
        if not receivers and not nameless:
            return
        if clock() - began > patience_s:
            for pid in receivers - terminated:
                _log.info("the walreceiver is still there after the reload", pid=pid, node=instance.node)
                _terminate(pid)
                terminated.add(pid)
        if clock() - began > patience_s + instance.timeouts.statement_ms / 1000:
            raise PostgresError(f"a walreceiver (process {sorted(receivers)}) goes on after SIGTERM: not detached")
        await asyncio.sleep(_POLL_S)


async def _wait_until_end_known(instance: Instance) -> Position:
    clock = asyncio.get_running_loop().time
    deadline = clock() + instance.timeouts.recruit_phase_ms / 1000
    while True:
        look = await take_look(instance.session("look"), instance.timeouts.statement_ms)
        _require_standby(look)
        if look.walreceivers:
            raise PostgresError("a walreceiver came back while the standby was being detached")
        await _clear_conflict(instance, look)
        if look.shows_end:
            instance.end_known = True
        if instance.end_known:
            position, _ = await position_of(look, instance)
            return position
        if clock() > deadline:
            raise PostgresError("the standby still replays its own log, so that its end is not known yet")
        await asyncio.sleep(_POLL_S)


async def _clear_conflict(instance: Instance, look: Look) -> None:
    """Make the sessions give way that replay waits for right now.

    The delay of zero takes effect with the next record only: a startup process that waits does not read new settings.
    """
    if look.replay_blocked:
        rows = await instance.session("work").fetch(_END_READERS)
        _log.info("sessions were ended for replay", count=len(rows), node=instance.node)


def _terminate(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


async def follow(instance: Instance, upstream: Upstream, member: Member) -> None:
    """Point a running standby at ``upstream``. See ``Server.follow``."""
    look = await take_look(instance.session("work"), instance.timeouts.statement_ms)
    _require_standby(look)
    wanted = Runtime(BARRIER, upstream, member.application_name, quick_replay=False)
    if instance.runtime != wanted or not instance.in_force:
        await instance.apply(wanted)


async def promote(instance: Instance, epoch: int) -> None:
    """Promote to timeline ``epoch``. See ``Server.promote``."""
    session = instance.session("work")
    look = await take_look(session, instance.timeouts.statement_ms)
    if not look.standby:
        position, _ = await position_of(look, instance)
        if position.timeline == epoch:
            return
        raise PostgresError(f"cannot promote to epoch {epoch}: the server leads timeline {position.timeline} already")
    await _clear_conflict(instance, look)
    if instance.promoting_to == epoch:
        return
    if look.synchronous_names != BARRIER:
        raise PostgresError(
            f"cannot promote: synchronous_standby_names is {look.synchronous_names!r}, which is not the barrier"
        )
    ((archiving,),) = await session.fetch("SELECT current_setting('archive_mode') <> 'off'")
    try:
        written = await asyncio.to_thread(
            write_placeholders, instance.layout.wal_dir, epoch, instance.user, archived=archiving
        )
    except OSError as error:
        raise PostgresError(f"cannot write the placeholders below timeline {epoch}: {error}") from error
    _log.info("promoting", epoch=epoch, placeholders=written, node=instance.node)
    ((promoted,),) = await session.fetch("SELECT pg_promote(false)")
    if not promoted:
        raise PostgresError("PostgreSQL refused to promote itself")
    instance.promoting_to = epoch


async def set_quorum(instance: Instance, quorum: Quorum | None) -> None:
    """Set the synchronous names. See ``Server.set_quorum``."""
    names = BARRIER if quorum is None else str(quorum) if quorum.k else ""
    await instance.change(synchronous_names=names)
    counted = quorum.members if quorum is not None and quorum.k else frozenset()
    clock = asyncio.get_running_loop().time
    deadline = clock() + instance.timeouts.reload_settle_ms / 1000
    while clock() < deadline:  # each walsender takes the new names by itself, a stuck one when it counts nothing anyway
        look = await take_look(instance.session("work"), instance.timeouts.statement_ms)
        if all(r.counted == (r.member in counted) for r in look.replicas if r.state == "streaming"):
            return
        await asyncio.sleep(_POLL_S)


async def write_epoch_record(instance: Instance, epoch: int) -> Lsn:
    """Write the record of an epoch's start. See ``Server.write_epoch_record``."""
    find = partial(read_history, instance.layout.wal_dir, epoch)
    history = await instance.disk.call("history", find, instance.timeouts.statement_ms)
    fork = history[-1].switch_lsn if history else Lsn(0)
    await instance.session("work").fetch(_EPOCH_RECORD, (epoch, str(fork)))
    return await flushed_lsn(instance)


async def flushed_lsn(instance: Instance) -> Lsn:
    """What a primary has flushed; raises PostgresError on a standby."""
    ((text,),) = await instance.session("work").fetch("SELECT pg_current_wal_flush_lsn()::text")
    return Lsn.parse(text)


async def heartbeat(instance: Instance, epoch: int, deadline_ms: float | None) -> None:
    """Commit the heartbeat row."""
    await instance.session("heartbeat").fetch(HEARTBEAT, (LOCAL_ROW, epoch), deadline_ms=deadline_ms)


async def active_transactions(instance: Instance) -> int:
    """How many client sessions are in a transaction, or have only just ended one."""
    calm_s = instance.timeouts.handover_calm_ms / 1000
    ((count,),) = await instance.session("work").fetch(_ACTIVE_TRANSACTIONS, (calm_s,))
    return int(count)


async def ensure_slots(instance: Instance, nodes: Collection[str]) -> None:
    """Make and drop slots. See ``Server.ensure_slots``."""
    session = instance.session("slots")
    wanted = {slot_of(node) for node in nodes if node != instance.node}
    on_primary = await session.fetch(_CHECKPOINT, (sorted(wanted),))
    if on_primary:
        wanted.add(ANCHOR)
    found = {name: (lost, active) for name, lost, active in await session.fetch(_SLOTS)}
    for name, (lost, active) in found.items():
        if (lost or name not in wanted) and not active:
            await session.fetch("SELECT pg_drop_replication_slot(%s)", (name,))
    kept = {name for name, (lost, active) in found.items() if active or not lost}
    for name in sorted(wanted - kept):
        await session.fetch("SELECT pg_create_physical_replication_slot(%s, true)", (name,))
    for checkpoint, redo, common in on_primary:
        everywhere = None if common is None else Lsn.parse(common)
        start = instance.checkpoints.anchor(Lsn.parse(checkpoint), Lsn.parse(redo), everywhere)
        if start is not None:
            await session.fetch(_ADVANCE, ([ANCHOR], [str(start)]))


async def advance_slots(instance: Instance, flushed: Mapping[str, Lsn]) -> None:
    """Move slots forward. See ``Server.advance_slots``."""
    if not flushed:
        return
    names = [slot_of(node) for node in flushed]
    try:
        await instance.session("slots").fetch(_ADVANCE, (names, [str(lsn) for lsn in flushed.values()]))
    except PostgresError as error:
        _log.debug("slots were not advanced", reason=str(error), node=instance.node)


async def walsenders(instance: Instance) -> dict[str, WalSender]:
    """Who streams through the slots. See ``Server.walsenders``."""
    rows = await instance.session("slots").fetch(_SENDERS)
    return {name.removeprefix(SLOT_PREFIX): WalSender(pid, replied) for name, pid, replied in rows}


async def end_walsender(instance: Instance, node: str, sender: WalSender) -> None:
    """End a walsender. See ``Server.end_walsender``."""
    await instance.session("slots").fetch(_END_SENDER, (slot_of(node), sender.pid))


def _require_standby(look: Look) -> None:
    if not look.standby:
        raise PostgresError("the server is a primary, not a standby")
