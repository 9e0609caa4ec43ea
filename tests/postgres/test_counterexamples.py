"""What goes wrong on a real PostgreSQL where a rule of the protocol is left out, and that it does not where it is kept.

Each test first does by hand what the rule forbids and sees the harm, then does the same through Holdfast. ``WHERE``
says where every counterexample of docs/protocol.md is replayed; those that need the store, agents or a proxy are
elsewhere.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.register import NO_QUORUM, Member, Quorum
from holdfast.model.server import ServerStatus
from holdfast.postgres.account import run_as
from holdfast.postgres.config import BARRIER, REPLICATION_ROLE, Runtime
from holdfast.postgres.programs import identity, run_program
from holdfast.postgres.server import Server
from holdfast.postgres.timelines import timelines_on_disk, write_placeholders
from tests.postgres.lab import DEADLINE_S, PASSWORD, Lab, new_incarnation
from tests.postgres.relay import Relay

pytestmark = pytest.mark.live

_TESTS = Path(__file__).resolve().parents[1]
WHERE = {
    "the direct writer before the barrier": (
        "postgres/test_counterexamples.py::test_a_direct_writer_before_the_barrier",
        "postgres/test_failover.py::test_the_barrier_holds_sessions_from_before_the_promotion",
        "live/test_failover.py::test_nothing_is_acknowledged_before_the_register_says_serving",
    ),
    "the placeholder restart": (
        "postgres/test_counterexamples.py::test_a_restart_with_placeholders",
        "postgres/test_failover.py::test_a_standby_restarts_after_an_abandoned_promotion",
        "postgres/test_failover.py::test_log_of_a_later_timeline_survives_a_restart",
    ),
    "the paused replay": (
        "postgres/test_counterexamples.py::test_a_revoked_standby_whose_replay_is_paused",
        "postgres/test_failover.py::test_detach_with_replay_paused",
        "postgres/test_failover.py::test_detach_in_a_recovery_conflict",
    ),
    "the cancelled wait": (
        "postgres/test_counterexamples.py::test_a_cancelled_wait",
        "proxy/test_loss.py::test_cancelled_wait_for_standbys_is_no_success",
        "proxy/test_loss.py::test_waiting_commit_is_not_cancelled",
    ),
    "the half-made clone under a listed name": (
        "postgres/test_counterexamples.py::test_a_half_made_copy_under_a_listed_name",
    ),
    "one standby counted twice": (
        "postgres/test_counterexamples.py::test_one_standby_counted_twice",
        "postgres/test_slots.py::test_the_keeper_ends_what_its_standby_has_given_up",
    ),
    "independent promotions": ("postgres/test_counterexamples.py::test_promotions_that_never_met",),
    "rewind just after promotion": (
        "postgres/test_rejoin.py::test_a_diverged_primary_is_rewound_right_after_the_promotion",
        "postgres/test_rejoin.py::test_no_rewind_required_beyond_the_fork_is_an_error",
    ),
}


@pytest.mark.parametrize("counterexample", WHERE)
def test_each_counterexample_is_replayed_where_it_is_said(counterexample: str) -> None:
    for place in WHERE[counterexample]:
        file, _, name = place.partition("::")
        defined = ast.walk(ast.parse((_TESTS / file).read_text()))
        assert name in {n.name for n in defined if isinstance(n, ast.AsyncFunctionDef | ast.FunctionDef)}, place


WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@contextlib.asynccontextmanager
async def committing(lab: Lab, node: str, statement: str) -> AsyncIterator[asyncio.Task[psycopg.AsyncCursor[object]]]:
    """A session past every proxy whose commit is under way."""
    session = await lab.connect(node)
    task = asyncio.ensure_future(session.execute(statement.encode()))
    try:
        yield task
    finally:
        await session.cancel_safe()
        with contextlib.suppress(psycopg.Error):
            await task


async def test_a_direct_writer_before_the_barrier(lab: Lab) -> None:
    """Promoted with no names, PostgreSQL acknowledges to a session from before what no standby has."""
    primary = await lab.primary()
    candidate, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, candidate)
    early = await lab.connect("b")
    await early.execute("SELECT 1")
    await primary.stop("immediate", 5000)
    await candidate.detach()
    await candidate.set_quorum(NO_QUORUM)
    with pytest.raises(PostgresError, match="is not the barrier"):
        await candidate.promote(2)
    await lab.execute("b", "SELECT pg_promote()")
    await early.execute("INSERT INTO t VALUES (1)")
    assert (await candidate.view()).replicas == ()

    await candidate.set_quorum(None)  # the rule: closed by a name that nobody has, until the register says serving
    async with committing(lab, "b", "INSERT INTO t VALUES (2)") as commit:
        await lab.until_rows("b", WAITING)
        assert not commit.done()


async def test_a_restart_with_placeholders(lab: Lab) -> None:
    """A standby that starts with history files above its log aims at a timeline that does not exist."""
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await standby.stop("fast", 10_000)
    write_placeholders(lab.data_dir("b") / "pg_wal", 5, run_as(None), archived=False)
    instance = standby._instance
    exited = asyncio.Event()
    postmaster = await instance.spawn(
        Runtime(BARRIER, lab.upstream("a"), member.application_name, quick_replay=False), exited, standby=True
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while "unexpected timeline ID 1" not in lab.server_log("b"):
                assert not exited.is_set(), lab.server_log("b")[-2000:]
                await asyncio.sleep(0.02)
    finally:
        await postmaster.stop("immediate", 5000)
        await postmaster.wait(5000)
        await standby.kill()

    await lab.join(standby, "a", member)  # the rule: what is above the log's end is removed before a start
    assert timelines_on_disk(lab.data_dir("b") / "pg_wal") == []
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, standby)


async def test_a_revoked_standby_whose_replay_is_paused(lab: Lab) -> None:
    """It has no upstream any more by its settings, and acknowledges a commit nevertheless."""
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, standby)
    await primary.set_quorum(Quorum(frozenset({member}), 1))
    await lab.execute("b", "SELECT pg_wal_replay_pause()")
    await lab.until_rows("b", "SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'")
    await standby._instance.apply(Runtime(BARRIER, None, None, quick_replay=True))
    assert (await standby.view()).upstream_host is None
    await lab.execute("a", "INSERT INTO t VALUES (1)")

    await standby.detach()  # the rule: no walreceiver process is left before the position is read
    async with committing(lab, "a", "INSERT INTO t VALUES (2)") as commit:
        await lab.until_rows("a", WAITING)
        assert not commit.done()


async def test_a_cancelled_wait(lab: Lab) -> None:
    """The client is told of success, and no standby has the row; tests/proxy/test_loss.py has what a proxy says."""
    primary = await lab.primary()
    standby, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, standby)
    await primary.set_quorum(Quorum(frozenset({Member("c", new_incarnation())}), 1))
    await standby.detach()
    session = await lab.connect("a")
    warnings: list[tuple[str | None, str | None]] = []
    session.add_notice_handler(lambda notice: warnings.append((notice.severity, notice.source_function)))
    commit = asyncio.ensure_future(session.execute("INSERT INTO t VALUES (1)"))
    await lab.until_rows("a", WAITING)
    await lab.execute("a", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    assert (await commit).statusmessage == "INSERT 0 1"
    assert warnings == [("WARNING", "SyncRepWaitForLSN")]
    assert await lab.execute("a", "SELECT i FROM t") == [(1,)]
    assert await lab.execute("b", "SELECT i FROM t") == []


@contextlib.asynccontextmanager
async def receiving(lab: Lab, source: str, application_name: str) -> AsyncIterator[None]:
    """A pg_receivewal: log in files, and no database that could be promoted."""
    settings = lab.settings_of(source)
    place = lab.root / "received"
    place.mkdir()
    user = run_as(None)
    if user is not None:
        os.chown(place, user.uid, user.gid)
    conninfo = f"host={settings.host} port={settings.port} user={REPLICATION_ROLE} application_name={application_name}"
    process = await asyncio.create_subprocess_exec(
        *(str(lab.installation.program("pg_receivewal")), "-D", str(place), "-d", conninfo, "--synchronous"),
        "--no-loop",
        env={"PGPASSWORD": PASSWORD},
        cwd=place,
        stderr=asyncio.subprocess.DEVNULL,
        **identity(user),
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def test_a_half_made_copy_under_a_listed_name(lab: Lab) -> None:
    """Log that streams under a member's name counts, whatever is behind it."""
    primary = await lab.primary()
    standby, listed = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t (i int)")
    await primary.set_quorum(Quorum(frozenset({listed}), 1))
    await standby.kill()
    async with committing(lab, "a", "INSERT INTO t VALUES (1)") as commit:
        await lab.until_rows("a", WAITING)
        assert not commit.done()
        async with receiving(lab, "a", listed.application_name):
            await commit

    # The rule: a directory made anew is another member; neither the copying nor the copy goes by the former name.
    names: set[str] = set()
    await lab.until_rows("a", "SELECT 1 FROM pg_stat_replication", present=False)
    async with committing(lab, "a", "INSERT INTO t VALUES (2)") as commit:
        await lab.until_rows("a", WAITING)
        renewed = Member("b", new_incarnation())
        copying = asyncio.ensure_future(standby.clone(lab.upstream("a"), renewed, lambda step, fraction: None))
        while not copying.done():
            seen = await lab.execute("a", "SELECT application_name FROM pg_stat_replication")
            names |= {name for (name,) in seen}
        await copying
        await lab.join(standby, "a", renewed)
        target = await primary.flushed_lsn()
        view = await lab.until(primary, lambda v: any(r.flush_lsn and r.flush_lsn >= target for r in v.replicas))
        assert [(r.member, r.counted) for r in view.replicas] == [(renewed, False)]
        assert not commit.done()
    assert names == {"holdfast_clone"}


async def test_one_standby_counted_twice(lab: Lab) -> None:
    """PostgreSQL counts connections: one that lingers counts beside the one that its standby has made since."""
    primary = await lab.primary()
    other, absent = await lab.standby("c")
    standby, twice = lab.server("b"), Member("b", new_incarnation())
    await lab.make("b", standby)
    await standby.set_incarnation(twice.incarnation)
    senders = f"SELECT 1 FROM pg_stat_replication WHERE application_name = '{twice}' AND state = 'streaming'"
    async with Relay(lab.upstream("a")).running() as relay:
        await lab.join(standby, "a", twice, relay.upstream)
        await lab.execute("a", "CREATE TABLE t (i int)")
        await primary.set_quorum(Quorum(frozenset({twice, absent}), 2))
        await other.detach()
        await lab.execute("b", "ALTER SYSTEM SET primary_slot_name = ''")
        await lab.execute("b", "SELECT pg_reload_conf()")
        await lab.until_rows("a", "SELECT 1 FROM pg_replication_slots WHERE active", present=False)
        await lab.until_rows("a", senders)
        async with committing(lab, "a", "INSERT INTO t VALUES (1)") as commit:
            await lab.until_rows("a", WAITING)
            await lab.until_rows("a", f"{senders} AND flush_lsn = pg_current_wal_flush_lsn()")
            assert not commit.done()
            relay.sever()
            await commit  # it is on one standby
        assert await lab.execute("a", senders) == [(1,), (1,)]

        await lab.execute("b", "ALTER SYSTEM RESET primary_slot_name")  # the rule: it streams through its own slot
        await lab.execute("b", "SELECT pg_reload_conf()")
        await lab.execute("a", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        through_slot = f"{senders} AND pid IN (SELECT active_pid FROM pg_replication_slots)"
        await lab.until_rows("a", through_slot)
        # Between the two it may have connected once more as before: that connection must have ended, too.
        await lab.until_rows("a", f"{senders} EXCEPT ALL {through_slot}", present=False)
        async with committing(lab, "a", "INSERT INTO t VALUES (2)") as commit:
            await lab.until_rows("a", WAITING)
            await lab.until_rows("a", f"{senders} AND flush_lsn = pg_current_wal_flush_lsn()")
            relay.sever()
            await lab.until_log("b", "is active for PID")
            assert await lab.execute("a", senders) == [(1,)]
            for node, sender in (await primary.walsenders()).items():
                await primary.end_walsender(node, sender)
            await lab.until(standby, lambda v: v.streaming)
            await lab.until_rows("a", f"{senders} AND flush_lsn = pg_current_wal_flush_lsn()")
            assert await lab.execute("a", senders) == [(1,)]
            assert not commit.done()
            await lab.make_slots("a")
            await other.follow(lab.upstream("a"), absent)
            await commit


async def promoted_twice(lab: Lab) -> tuple[Server, Server]:
    """Two standbys at the same position, their primary gone."""
    primary = await lab.primary()
    one, _ = await lab.standby("b")
    other, _ = await lab.standby("c")
    await lab.execute("a", "CREATE TABLE t (i int)")
    await lab.until_equal(primary, one)
    await lab.until_equal(primary, other)
    await primary.stop("fast", 10_000)
    assert await one.detach() == await other.detach()
    return one, other


async def test_promotions_that_never_met(lab: Lab) -> None:
    """Left to itself PostgreSQL takes the same timeline twice, and pg_rewind sees no difference."""
    one, other = await promoted_twice(lab)
    for node, server in (("b", one), ("c", other)):
        await server.set_quorum(NO_QUORUM)
        await lab.execute(node, "SELECT pg_promote()")
        await lab.execute(node, "CHECKPOINT")
    await lab.execute("b", "INSERT INTO t SELECT generate_series(1, 1000)")
    await lab.execute("c", "INSERT INTO t VALUES (2)")
    histories = [(lab.data_dir(node) / "pg_wal" / "00000002.history").read_bytes() for node in ("b", "c")]
    assert histories[0] == histories[1]
    await one.stop("fast", 10_000)
    settings = lab.settings_of("c")
    source = psycopg.conninfo.make_conninfo(
        host=settings.host, port=settings.port, user="postgres", password=PASSWORD, dbname="postgres"
    )
    dry_run = ["pg_rewind", "--dry-run", "-D", str(lab.data_dir("b")), "--source-server", source]
    outcome = await run_program(lab.installation, dry_run, run_as(None), working_dir=lab.root / "b" / "run")
    assert "no rewind required" in outcome.said, outcome.said
    with pytest.raises(PostgresError, match="clone is needed"):
        await one.rewind(lab.upstream("c"), await one.end_of_log(), lambda step, fraction: None)


async def test_promotions_of_different_epochs_are_told_apart(lab: Lab) -> None:
    """The rule: the timeline is the epoch, so that the loser is rewound and its row is gone."""
    one, other = await promoted_twice(lab)
    for server, epoch in ((one, 2), (other, 3)):
        await server.promote(epoch)
        await lab.until(server, lambda v: v.status is ServerStatus.PRIMARY)
        await server.set_quorum(NO_QUORUM)
        await server.write_epoch_record(epoch)
    await lab.execute("b", "INSERT INTO t VALUES (1)")
    await lab.execute("c", "INSERT INTO t VALUES (2)")
    await one.stop("fast", 10_000)
    end = await one.end_of_log()
    assert end.timeline == 2
    await one.rewind(lab.upstream("c"), end, lambda step, fraction: None)
    member = Member("b", new_incarnation())
    await one.set_incarnation(member.incarnation)
    await lab.join(one, "c", member)
    await lab.until_equal(other, one)
    assert await lab.execute("b", "SELECT i FROM t") == [(2,)]
