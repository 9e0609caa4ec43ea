"""Detaching, promoting behind the barrier, and following through it, on real servers."""

from __future__ import annotations

import asyncio
import os
import signal

import psycopg
import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import is_on_history
from holdfast.model.register import Member, Quorum
from holdfast.model.server import ServerStatus
from holdfast.postgres.config import BARRIER
from holdfast.postgres.timelines import is_placeholder, timelines_on_disk, write_placeholders
from tests.postgres.lab import DEADLINE_S, Lab, new_incarnation

pytestmark = pytest.mark.live


async def test_timeline_is_the_epoch_and_a_follower_keeps_its_walreceiver(lab: Lab) -> None:
    primary = await lab.primary()
    candidate, _ = await lab.standby("b")
    follower, member = await lab.standby("c")
    await primary.stop("immediate", 5000)
    await candidate.detach()
    await follower.detach()
    await lab.make_slots("b")
    await follower.follow(lab.upstream("b"), member)
    await lab.until(follower, lambda v: v.streaming)
    [(receiver,)] = await lab.execute("c", "SELECT pid FROM pg_stat_wal_receiver")
    await candidate.promote(7)
    await candidate.promote(7)
    view = await lab.until(candidate, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.position is not None
    assert view.position.timeline == 7
    assert [s.timeline for s in view.history] == [1]
    assert await candidate.history_of(7) == view.history
    with pytest.raises(PostgresError, match="no history file"):
        await candidate.history_of(5)
    await candidate.set_quorum(Quorum(frozenset({member}), 1))
    record = await candidate.write_epoch_record(7)
    assert await candidate.write_epoch_record(7) >= record
    await lab.until(candidate, lambda v: any(r.flush_lsn and r.flush_lsn >= record for r in v.replicas))
    followed = await lab.until(follower, lambda v: v.position is not None and v.position.timeline == 7)
    assert [s.timeline for s in followed.history] == [1]
    assert await lab.execute("c", "SELECT pid FROM pg_stat_wal_receiver") == [(receiver,)]
    assert await lab.execute("b", "SELECT epoch, fork_lsn::text FROM holdfast.epochs WHERE epoch = 7") == [
        (7, str(view.history[0].switch_lsn))
    ]


async def test_a_standby_restarts_after_an_abandoned_promotion(lab: Lab) -> None:
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await standby.detach()
    wal_dir = lab.data_dir("b") / "pg_wal"
    write_placeholders(wal_dir, 5, None, archived=False)
    assert is_placeholder(wal_dir, 4)
    await standby.stop("immediate", 5000)
    await lab.join(standby, "a", member)
    assert timelines_on_disk(wal_dir) == []
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, standby)


async def test_log_of_a_later_timeline_survives_a_restart(lab: Lab) -> None:
    """Also when its control file still names the first timeline: the placeholders below it are kept."""
    primary = await lab.primary()
    candidate, _ = await lab.standby("b")
    follower, member = await lab.standby("c")
    await primary.stop("fast", 10_000)
    await candidate.detach()
    await lab.make_slots("b")
    await follower.follow(lab.upstream("b"), member)
    await candidate.promote(4)
    await lab.until(candidate, lambda v: v.status is ServerStatus.PRIMARY)
    await candidate.set_quorum(Quorum(frozenset({member}), 1))
    await lab.execute("b", "CREATE TABLE acknowledged AS SELECT 1 AS i")
    before = (await lab.until(follower, lambda v: v.position is not None and v.position.timeline == 4)).position
    await follower.kill()
    end = await follower.end_of_log()
    await follower.start(standby=True)
    after = (await lab.until(follower, lambda v: v.status is ServerStatus.STANDBY)).position
    assert before is not None
    assert after is not None
    assert before <= end
    assert end == after


async def test_a_real_history_that_the_log_never_reached_does_not_mislead_a_start(lab: Lab) -> None:
    """The candidate of an epoch that was replaced has a real history file, and follows the next leader."""
    primary = await lab.primary()
    other, _ = await lab.standby("b")
    abandoned, member = await lab.standby("c")
    await primary.stop("fast", 10_000)
    await abandoned.detach()
    position = await other.detach()
    await abandoned.stop("fast", 10_000)
    name = lab.data_dir("c") / "pg_wal" / "00000003.history"
    name.write_text(f"1\t{position.lsn}\tno recovery target specified\n")
    await other.promote(4)
    await lab.until(other, lambda v: v.status is ServerStatus.PRIMARY)
    await other.set_quorum(None)
    await lab.join(abandoned, "b", member)
    await other.write_epoch_record(4)
    await lab.until(abandoned, lambda v: v.position is not None and v.position.timeline == 4)


async def test_detach_with_replay_paused(lab: Lab) -> None:
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await lab.execute("b", "SELECT pg_wal_replay_pause()")
    await lab.until_rows("b", "SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'")
    await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    flushed = await primary.flushed_lsn()
    await lab.until(standby, lambda v: v.position is not None and v.position.lsn >= flushed)
    position = await standby.detach()
    assert position.lsn >= flushed
    assert (await standby.view()).upstream_host is None
    await _assert_revoked(lab, member.application_name)
    again = await standby.detach()
    assert again == position
    await lab.until(standby, lambda v: v.replay_lsn is not None and v.replay_lsn >= flushed)


async def test_detach_in_a_recovery_conflict(lab: Lab) -> None:
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    await lab.until_equal(primary, standby)
    reader = await lab.connect("b")
    await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await reader.execute("SELECT count(*) FROM t")
    await lab.execute("a", "DELETE FROM t")
    await lab.execute("a", "VACUUM t")
    conflict = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event LIKE 'RecoveryConflict%'"
    await lab.until_rows("b", conflict)
    flushed = await primary.flushed_lsn()
    began = asyncio.get_running_loop().time()
    position = await standby.detach()
    assert position.lsn >= flushed
    await _assert_revoked(lab, member.application_name)
    await lab.until(standby, lambda v: v.replay_lsn is not None and v.replay_lsn >= flushed)
    assert asyncio.get_running_loop().time() - began < 25  # max_standby_streaming_delay is 30 s
    with pytest.raises(psycopg.Error):  # the reader gave way
        await reader.execute("SELECT count(*) FROM t")


async def test_detach_when_the_startup_process_hangs(lab: Lab) -> None:
    """Nobody tells the walreceiver to leave then; it is terminated, and the log that it had acknowledged counts."""
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    [(startup,)] = await lab.execute("b", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'")
    os.kill(startup, signal.SIGSTOP)
    try:
        await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
        flushed = await primary.flushed_lsn()
        await lab.until(standby, lambda v: v.position is not None and v.position.lsn >= flushed)
        position = await standby.detach()
        assert position.lsn >= flushed
        await _assert_revoked(lab, member.application_name)
    finally:
        os.kill(startup, signal.SIGCONT)
    await lab.until(standby, lambda v: v.replay_lsn is not None and v.replay_lsn >= flushed)
    assert not (await standby.view()).walreceiver


async def test_detach_while_the_walreceiver_connects(lab: Lab) -> None:
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await standby.detach()
    assert primary.pid is not None
    os.kill(primary.pid, signal.SIGSTOP)
    try:
        await standby.follow(lab.upstream("a"), member)
        view = await lab.until(standby, lambda v: v.walreceiver)
        assert not view.streaming
        await standby.detach()
        assert not (await standby.view()).walreceiver
    finally:
        os.kill(primary.pid, signal.SIGCONT)
    await lab.until_rows("a", "SELECT 1 FROM pg_stat_replication", present=False)


async def _assert_revoked(lab: Lab, application_name: str) -> None:
    """The former upstream has no walsender for it any more, and gets none."""
    query = f"SELECT 1 FROM pg_stat_replication WHERE application_name = '{application_name}'"
    await lab.until_rows("a", query, present=False)
    log = lab.server_log("b")
    assert "PANIC" not in log


async def test_the_barrier_holds_sessions_from_before_the_promotion(lab: Lab) -> None:
    primary = await lab.primary()
    candidate, _ = await lab.standby("b")
    follower, member = await lab.standby("c")
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, candidate)
    early = await lab.connect("b")
    await early.execute("SELECT 1")
    await primary.stop("immediate", 5000)
    await candidate.detach()
    await follower.detach()
    await lab.make_slots("b")
    await follower.follow(lab.upstream("b"), member)
    await candidate.promote(2)
    view = await lab.until(candidate, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.synchronous_names == BARRIER
    commit = asyncio.create_task(early.execute("INSERT INTO t VALUES (1)"))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await lab.until_rows("b", waiting)
    record = await candidate.write_epoch_record(2)
    await lab.until(candidate, lambda v: any(r.flush_lsn and r.flush_lsn >= record for r in v.replicas))
    assert not commit.done()
    quorum = Quorum(frozenset({member}), 1)
    await candidate.set_quorum(quorum)
    await commit
    view = await candidate.view()
    assert view.synchronous_names == str(quorum)
    assert [(r.member, r.counted) for r in view.replicas] == [(member, True)]
    await candidate.set_quorum(None)
    assert (await candidate.view()).synchronous_names == BARRIER


async def test_promote_refuses_what_would_break_the_protocol(lab: Lab) -> None:
    primary = await lab.primary()
    with pytest.raises(PostgresError, match="leads timeline 1"):
        await primary.promote(2)
    with pytest.raises(PostgresError, match="primary"):
        await primary.detach()
    standby, _ = await lab.standby("b")
    (lab.data_dir("b") / "pg_wal" / "00000009.history").write_text("1\t0/3000000\tx\n")
    with pytest.raises(PostgresError, match="timeline 9 exists already"):
        await standby.promote(9)


async def test_views_of_a_whole_life(lab: Lab) -> None:
    server = lab.server("a")
    assert (await server.view()).status is ServerStatus.ABSENT
    assert server.system_identifier() is None
    lab.servers.remove(server)
    primary = await lab.primary()
    assert primary.system_identifier() is not None
    view = await primary.view()
    assert view.position is not None
    assert view.position.timeline == 1
    assert view.synchronous_names == ""
    standby, member = await lab.standby("b")
    seen = await standby.view()
    assert seen.upstream_host == f"127.0.0.1:{lab.settings_of('a').port}"
    assert seen.walreceiver
    assert seen.position is not None
    assert is_on_history(seen.position, 1, ())
    assert [r.member for r in (await primary.view()).replicas] == [member]
    await primary.stop("fast", 10_000)
    assert (await primary.view()).status is ServerStatus.STOPPED
    await lab.until(standby, lambda v: not v.streaming)
    # a restarted standby says nothing about its end before it knows it
    await standby.stop("fast", 10_000)
    await standby.start(standby=True)
    again = await lab.until(standby, lambda v: v.status is ServerStatus.STANDBY)
    assert again.upstream_host is None
    await standby.stop("fast", 10_000)
    assert again.position == await standby.end_of_log()


async def test_a_connection_that_is_refused_is_no_stream(lab: Lab) -> None:
    await lab.primary()
    stranger = lab.server("b")
    await stranger.initialize()  # another cluster
    await stranger.start(standby=True)
    await lab.until(stranger, lambda v: v.status is ServerStatus.STANDBY)
    await stranger.follow(lab.upstream("a"), Member("b", new_incarnation()))
    seen = [await stranger.view() for _ in range(200)]
    assert not any(v.streaming for v in seen)
    async with asyncio.timeout(DEADLINE_S):
        while "identifier differs" not in str(stranger.why_it_ended()):  # noqa: ASYNC110 - its log, a file
            await asyncio.sleep(0.02)
    await lab.until(stranger, lambda v: v.walreceiver)


async def test_what_holdfast_owns_cannot_be_overridden(lab: Lab) -> None:
    primary = await lab.primary(quorum=None)
    await lab.execute("a", "ALTER SYSTEM SET synchronous_standby_names = ''")
    await lab.execute("a", "ALTER SYSTEM SET restart_after_crash = on")
    await lab.execute("a", "ALTER SYSTEM SET work_mem = '5MB'")
    await primary.set_quorum(None)
    assert (await primary.view()).synchronous_names == BARRIER
    await primary.stop("fast", 10_000)
    auto = lab.data_dir("a") / "postgresql.auto.conf"
    with auto.open("a") as stream:
        stream.write("primary_conninfo = 'host=elsewhere'\nsynchronous_standby_names = '*'\n")
    await primary.start(standby=False)
    view = await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.synchronous_names == BARRIER
    shown = "SELECT current_setting('restart_after_crash'), current_setting('work_mem')"
    assert await lab.execute("a", shown) == [("off", "5MB")]


async def test_transactions_heartbeats_and_checkpoints(lab: Lab) -> None:
    primary = await lab.primary()
    assert await primary.active_transactions() == 0
    session = await lab.connect("a")
    await session.execute("BEGIN")
    await session.execute("SELECT 1")
    assert await primary.active_transactions() == 1
    await primary.heartbeat(1)
    await primary.heartbeat(3)
    assert await lab.execute("a", "SELECT id, epoch FROM holdfast.heartbeat") == [(1, 3)]
    await primary.checkpoint()
    assert await primary.accepts_sessions(5000)
