"""Brings a diverged or missing data directory back: pg_rewind and pg_basebackup, with their traps closed."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from holdfast.model.errors import ConfigurationError, EnvironmentFault, PostgresError
from holdfast.model.lost import LostLog, Unaccounted
from holdfast.model.lsn import History, Lsn, Position, is_on_history
from holdfast.model.register import Member
from holdfast.model.server import Upstream
from holdfast.postgres.accounting import account
from holdfast.postgres.bootstrap import prepare_staging, swap_in
from holdfast.postgres.config import BARRIER, Runtime, upstream_conninfo
from holdfast.postgres.control import read_control
from holdfast.postgres.faults import explain
from holdfast.postgres.files import remove_durably, sync_directory, write_durably
from holdfast.postgres.instance import Instance
from holdfast.postgres.layout import system_identifier_of
from holdfast.postgres.process import kill_everything
from holdfast.postgres.programs import Outcome, run_program
from holdfast.postgres.session import Session
from holdfast.postgres.timelines import history_name, parse_history, read_history

_log = structlog.get_logger(__name__)

Progress = Callable[[str, float | None], None]

_PERCENT = re.compile(r"\((\d+)%\)")
_BASEBACKUP_OPTIONS = ("--wal-method=stream", "--checkpoint=fast", "--no-password", "--progress")
_SOURCE = """
SELECT pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT timeline_id FROM pg_control_checkpoint()),
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What a rewind needs to know of the primary it aims at."""

    system_identifier: str
    timeline: int
    history: History
    flushed: Lsn


async def rewind(
    instance: Instance, source: Upstream, own_end: Position, progress: Progress
) -> LostLog | Unaccounted | None:
    """Rewind the stopped directory to ``source``. See ``Server.rewind``."""
    instance.require_stopped()
    layout = instance.layout
    progress("checkpoint of the source", None)
    found = await inspect_source(instance, source)
    own_identifier = layout.system_identifier()
    if found.system_identifier != own_identifier:
        raise ConfigurationError(
            f"postgres.data_dir = {str(layout.data_dir)!r} belongs to another cluster (system identifier "
            f"{own_identifier}) than {source.node} ({found.system_identifier}): move it away, or correct [cluster]"
        )
    await asyncio.to_thread(_require_same_promotion, instance, found, own_end)
    if is_on_history(own_end, found.timeline, found.history):
        progress("nothing to rewind", 1.0)
        return None
    conninfo = await _conninfo(instance, source, "holdfast_rewind")
    await instance.end_orphans()
    lost = await _account(instance, own_end, found, conninfo, progress)
    for signal_file in ("standby.signal", "recovery.signal"):
        remove_durably(layout.data_dir / signal_file)
    write_durably(layout.half_done_mark, b"rewind\n", instance.user)
    await _finish_recovery(instance, own_end, progress)
    progress("rewinding", 0.0)
    outcome = await run_program(
        instance.installation,
        ["pg_rewind", "-D", str(layout.data_dir), "--source-server", conninfo, "-R", "-P"],
        instance.user,
        on_line=lambda line: _report(progress, "rewinding", line),
        working_dir=layout.side_dir,
    )
    await verify_rewound(instance, outcome, found, own_end)
    progress("fetching log up to a consistent state", None)
    await _reach_consistency(instance, source)
    layout.forget_incarnation()
    remove_durably(layout.half_done_mark)
    progress("rewound", 1.0)
    _log.info("rewound", node=instance.node, source=source.node, timeline=found.timeline, own_end=str(own_end.lsn))
    return lost


async def _finish_recovery(instance: Instance, own_end: Position, progress: Progress) -> None:
    """Let the control file name the timeline that the log ends on. Raises PostgresError.

    Up to PostgreSQL 15 pg_rewind takes the timeline of the last checkpoint for the directory's own. If that primary was
    lost before the first checkpoint after its promotion was done, and was a standby since, that is an older one, and
    the fork is sought where no log is. Recovery to its end, alone, writes a checkpoint; all of it is taken back.
    (After a crash pg_rewind does the same by itself.)
    """
    layout = instance.layout
    control = await read_control(instance.installation, layout.data_dir, instance.user)
    if not control.shut_down or control.timeline >= own_end.timeline:
        return
    progress("finishing recovery", None)
    command = ["postgres", "--single", "-F", "-D", str(layout.data_dir), "template1"]
    outcome = await run_program(instance.installation, command, instance.user, stdin="", working_dir=layout.side_dir)
    if outcome.status != 0:
        raise PostgresError(f"recovery before the rewind failed, a clone is needed: {outcome.last_words}")


async def _account(
    instance: Instance, own_end: Position, found: Source, conninfo: str, progress: Progress
) -> LostLog | Unaccounted:
    """Evidence first; but a node that cannot be captured (its disk is full, say) is brought back all the same."""
    try:
        return await account(instance, own_end, found.timeline, found.history, conninfo, progress)
    except (PostgresError, EnvironmentFault, OSError) as error:
        _log.error("log.unaccounted", node=instance.node, error=str(error))
        return Unaccounted(str(error))


def _require_same_promotion(instance: Instance, found: Source, own_end: Position) -> None:
    """Two promotions to one timeline look alike to pg_rewind, which would find nothing to do and keep phantom rows."""
    if own_end.timeline != found.timeline:
        return
    if read_history(instance.layout.wal_dir, found.timeline) != found.history or own_end.lsn > found.flushed:
        raise PostgresError(
            f"the log ends at {own_end.lsn} of timeline {own_end.timeline}, beyond the source's: a clone is needed"
        )


async def verify_rewound(instance: Instance, outcome: Outcome, found: Source, own_end: Position) -> None:
    """Raises PostgresError unless the directory, whose log went beyond the fork, is on the source's timeline now."""
    layout = instance.layout
    if outcome.status != 0:
        raise PostgresError(f"pg_rewind failed, a clone is needed: {outcome.last_words}")
    if "no rewind required" in outcome.said:
        raise PostgresError(
            f"pg_rewind sees nothing to rewind although the log ends beyond the fork, at {own_end.lsn} of timeline "
            f"{own_end.timeline}: a clone is needed"
        )
    control = await read_control(instance.installation, layout.data_dir, instance.user)
    if control.newest_timeline != found.timeline:
        raise PostgresError(
            f"pg_rewind left timeline {control.newest_timeline} instead of {found.timeline}: a clone is needed"
        )


async def _reach_consistency(instance: Instance, source: Upstream) -> None:
    """Run the rewound directory until it accepts sessions, and stop it again.

    It is consistent only with log that the source wrote while pg_rewind ran; without it a start, which has no upstream,
    would never accept a session. It streams under a name that is never a member's and listens to nobody else.
    """
    exited = asyncio.Event()
    runtime = Runtime(BARRIER, source, "holdfast_rewind", quick_replay=True)
    postmaster = await instance.spawn(runtime, exited, standby=True, options=("-c", "listen_addresses="))
    session = instance.new_session()
    try:
        async with asyncio.timeout(instance.timeouts.start_ms / 1000):
            while not await _accepts(session):
                if not postmaster.alive():
                    reason = instance.why_it_ended()
                    raise PostgresError(f"the rewound server does not run, a clone is needed: {reason}")
                await asyncio.sleep(instance.timeouts.busy_tick_interval_ms / 1000)
        await postmaster.stop("fast", instance.timeouts.start_ms)
    except TimeoutError as error:
        raise PostgresError("the rewound server does not become consistent, a clone is needed") from error
    finally:
        await session.close()
        await asyncio.shield(
            kill_everything(instance.layout.data_dir, postmaster, instance.timeouts.kill_ms, instance.disk)
        )


async def _accepts(session: Session) -> bool:
    try:
        await session.fetch("SELECT 1")
    except PostgresError:
        return False
    return True


async def inspect_source(instance: Instance, source: Upstream) -> Source:
    """Ask the source what it is; its control file must name its own timeline, which pg_rewind goes by."""
    conninfo = await _conninfo(instance, source, "holdfast_rewind")
    try:
        async with (
            asyncio.timeout(instance.timeouts.source_checkpoint_ms / 1000),
            await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection,
        ):
            return await _ask(connection, source)
    except (psycopg.Error, TimeoutError) as error:
        raise PostgresError(f"cannot ask {source.node} at {source.host}:{source.port}: {error}") from error


async def _ask(connection: psycopg.AsyncConnection[tuple[Any, ...]], source: Upstream) -> Source:
    in_recovery, identifier, recorded, log_file, flushed = await _row(connection, _SOURCE)
    if in_recovery:
        raise PostgresError(f"{source.node} is not a primary, it cannot be rewound to")
    timeline = int(log_file[:8], 16)
    if recorded != timeline:
        await connection.execute("SELECT holdfast.request_checkpoint()")
        _, _, recorded, _, _ = await _row(connection, _SOURCE)
    if recorded != timeline:
        raise PostgresError(f"the control file of {source.node} says timeline {recorded}, it leads {timeline}")
    history: History = ()
    if timeline > 1:
        (raw,) = await _row(connection, "SELECT pg_read_binary_file(%s)", (f"pg_wal/{history_name(timeline)}",))
        history = parse_history(bytes(raw).decode())
    return Source(identifier, timeline, history, Lsn.parse(flushed))


async def _row(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], query: str, parameters: tuple[Any, ...] = ()
) -> tuple[Any, ...]:
    cursor = await connection.execute(query.encode(), parameters or None)
    row = await cursor.fetchone()
    if row is None:
        raise PostgresError("the source gave no answer")
    return row


async def clone(instance: Instance, source: Upstream, member: Member, progress: Progress) -> None:
    """Replace the data directory with a copy of ``source``. See ``Server.clone``."""
    if instance.running:
        raise PostgresError(f"the server in {instance.layout.data_dir} runs: stop it before it is cloned")
    layout = instance.layout
    await instance.end_orphans()
    await prepare_staging(layout)
    conninfo = await _conninfo(instance, source, "holdfast_clone")
    progress("waiting for the source's checkpoint", None)
    try:
        outcome = await run_program(
            instance.installation,
            ["pg_basebackup", "-D", str(layout.staging_dir), "-d", conninfo, *_BASEBACKUP_OPTIONS],
            instance.user,
            on_line=lambda line: _report(progress, "copying", line),
            working_dir=layout.side_dir,
        )
        if outcome.status != 0:
            fault = explain(outcome.said)
            if isinstance(fault, EnvironmentFault) and "disk" in str(fault):
                raise fault
            raise PostgresError(f"pg_basebackup from {source.node} failed: {outcome.last_words}")
        _require_same_cluster(instance)
        layout.set_incarnation(member.incarnation, layout.staging_dir)
        sync_directory(layout.staging_dir)
        progress("moving into place", 1.0)
        await asyncio.shield(asyncio.to_thread(swap_in, layout))
    except BaseException:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, layout.staging_dir, ignore_errors=True))
        raise
    _log.info("cloned", node=instance.node, source=source.node, incarnation=member.incarnation)


def _require_same_cluster(instance: Instance) -> None:
    old, new = instance.layout.system_identifier(), system_identifier_of(instance.layout.staging_dir)
    if old is not None and old != new:
        raise ConfigurationError(
            f"postgres.data_dir = {str(instance.layout.data_dir)!r} belongs to another cluster (system identifier "
            f"{old}) than the source ({new}): move it away, or correct [cluster]"
        )


async def _conninfo(instance: Instance, source: Upstream, application_name: str) -> str:
    await asyncio.to_thread(instance.layout.prepare)
    passfile = instance.layout.tool_passfile
    await asyncio.to_thread(instance.configuration.write_passfile, passfile)
    return upstream_conninfo(source, application_name, passfile, dbname="postgres")


def _report(progress: Progress, step: str, line: str) -> None:
    match = _PERCENT.search(line)
    if match is not None:
        progress(step, min(int(match[1]), 100) / 100)
