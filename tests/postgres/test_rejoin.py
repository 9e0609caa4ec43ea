"""Ends of logs, rewinding and cloning, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil
import psycopg
import pytest

from holdfast.model.errors import ConfigurationError, PostgresError
from holdfast.model.lost import LostLog, Tuples
from holdfast.model.lsn import Lsn, Position
from holdfast.model.register import BARRIER_NAME, NO_QUORUM, Member
from holdfast.model.server import ServerStatus
from holdfast.postgres import rejoin
from holdfast.postgres.accounting import read_accounts
from holdfast.postgres.control import read_control
from holdfast.postgres.programs import Outcome
from holdfast.postgres.server import Server
from tests.postgres.lab import PARAMETERS, Lab, new_incarnation, nothing

pytestmark = pytest.mark.live


async def write(lab: Lab, node: str, stop: asyncio.Event) -> None:
    """Write until told to stop, or until the server is killed."""
    session = await lab.connect(node)
    await session.execute("CREATE TABLE IF NOT EXISTS filler AS SELECT 1 AS i, repeat('x', 700) AS filler")
    with contextlib.suppress(psycopg.Error):
        while not stop.is_set():
            await session.execute("INSERT INTO filler SELECT i, repeat('x', 700) FROM generate_series(1, 300) i")


async def diverged_pair(lab: Lab, epoch: int = 3, *, serves: bool = True) -> tuple[Server, Server]:
    """An old primary, stopped with rows that nobody else has, and the new one, or one at the barrier still."""
    old = await lab.primary("a")
    new, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT 1 AS i")
    await lab.until_equal(old, new)
    await new.detach()
    await lab.execute("a", "INSERT INTO t SELECT generate_series(100, 200)")
    await old.stop("immediate", 5000)
    await new.promote(epoch)
    await lab.until(new, lambda v: v.status is ServerStatus.PRIMARY)
    if serves:
        await new.set_quorum(NO_QUORUM)
    await new.write_epoch_record(epoch)
    return old, new


async def test_a_diverged_primary_is_rewound_right_after_the_promotion(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    (lab.data_dir("a") / "standby.signal").touch()  # as an interrupted attempt leaves it
    end = await old.end_of_log()
    fork = (await new.history_of(3))[0].switch_lsn
    assert end.timeline == 1
    assert end.lsn > fork
    steps: list[str] = []
    stop = asyncio.Event()
    writer = asyncio.create_task(write(lab, "b", stop))  # consistent only with what is written meanwhile
    await old.rewind(lab.upstream("b"), end, lambda step, fraction: steps.append(step))
    stop.set()
    await writer
    assert "rewinding" in steps
    assert old.incarnation() is None
    assert (await old.view()).status is ServerStatus.STOPPED
    member = Member("a", new_incarnation())
    await old.set_incarnation(member.incarnation)
    await lab.join(old, "b", member)
    await lab.execute("b", "INSERT INTO t VALUES (2)")
    await lab.until_equal(new, old)
    assert await lab.execute("a", "SELECT i FROM t ORDER BY i") == [(1,), (2,)]
    assert [r.member for r in (await new.view()).replicas] == [member]


async def test_a_primary_lost_before_its_first_checkpoint_is_rewound_after_it_was_a_standby(lab: Lab) -> None:
    """Its control file names the timeline of before its promotion, which pg_rewind believes up to PostgreSQL 15."""
    old = await lab.primary("a")
    first, _ = await lab.standby("b")
    second, member = await lab.standby("c")
    await lab.execute("a", "CREATE TABLE t AS SELECT 1 AS i")
    await lab.execute("a", "CREATE TABLE filler AS SELECT i, repeat('x', 700) FROM generate_series(1, 5000) i")
    for standby in (first, second):
        await lab.until_equal(old, standby)
        await standby.detach()
    await old.stop("immediate", 5000)
    await first.promote(2)  # the checkpoint after it is spread over minutes: there are many pages to write
    await lab.until(first, lambda v: v.status is ServerStatus.PRIMARY)
    await first.set_quorum(NO_QUORUM)
    await lab.make_slots("b")
    await second.follow(lab.upstream("b"), member)
    await lab.until(second, lambda v: v.streaming)
    await lab.until_equal(first, second)
    await second.detach()
    await lab.execute("b", "INSERT INTO t SELECT generate_series(100, 200)")
    await first.kill()
    await second.promote(3)
    await lab.until(second, lambda v: v.status is ServerStatus.PRIMARY)
    await second.set_quorum(NO_QUORUM)
    await second.write_epoch_record(3)
    await first.start(standby=True)
    await lab.until(first, lambda v: v.status is ServerStatus.STANDBY)
    await first.stop("fast", 10_000)
    end = await first.end_of_log()
    control = await read_control(first._instance.installation, lab.data_dir("b"), first._instance.user)
    assert (end.timeline, control.timeline, control.shut_down) == (2, 1, True)
    await first.rewind(lab.upstream("c"), end, nothing)
    await lab.join(first, "c", Member("b", new_incarnation()))
    await lab.until_equal(second, first)
    assert await lab.execute("b", "SELECT i FROM t") == [(1,)]


async def test_a_log_is_given_up_for_a_candidate_that_acknowledges_nothing_yet(lab: Lab) -> None:
    old, candidate = await diverged_pair(lab, serves=False)
    assert (await candidate.view()).synchronous_names == f"ANY 1 ({BARRIER_NAME})"
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    member = Member("a", new_incarnation())
    await old.set_incarnation(member.incarnation)
    await lab.join(old, "b", member)
    record = await candidate.write_epoch_record(3)
    await lab.until(candidate, lambda v: any(r.flush_lsn is not None and r.flush_lsn >= record for r in v.replicas))
    assert [r.member for r in (await candidate.view()).replicas] == [member]


async def test_a_prefix_needs_no_rewind(lab: Lab) -> None:
    old = await lab.primary("a")
    new, _ = await lab.standby("b")
    await old.stop("fast", 10_000)
    end = await old.end_of_log()
    assert await new.detach() == end
    await new.promote(2)
    await lab.until(new, lambda v: v.status is ServerStatus.PRIMARY)
    await new.set_quorum(NO_QUORUM)
    await old.rewind(lab.upstream("b"), end, nothing)
    assert old.incarnation() is not None
    await lab.join(old, "b", Member("a", new_incarnation()))
    await new.write_epoch_record(2)
    await lab.until(old, lambda v: v.position is not None and v.position.timeline == 2)


async def test_no_rewind_required_beyond_the_fork_is_an_error(lab: Lab) -> None:
    """pg_rewind believes the source's control file; without the checkpoint of the source it sees one timeline."""
    old, _ = await diverged_pair(lab)
    end = await old.end_of_log()
    found = await rejoin.inspect_source(old._instance, lab.upstream("b"))
    outcome = Outcome(0, "", "pg_rewind: no rewind required")
    with pytest.raises(PostgresError, match="clone is needed"):
        await rejoin.verify_rewound(old._instance, outcome, found, end)


async def test_a_failed_rewind_leaves_absent_and_a_clone_mends_it(lab: Lab) -> None:
    old, _ = await diverged_pair(lab)
    end = await old.end_of_log()
    wal = lab.data_dir("a") / "pg_wal"
    control = await read_control(old._instance.installation, lab.data_dir("a"), old._instance.user)
    assert control.timeline == 1
    for segment in wal.glob("0000000100000000*"):
        segment.unlink()
    with pytest.raises(PostgresError, match="clone is needed"):
        await old.rewind(lab.upstream("b"), end, nothing)
    assert (await old.view()).status is ServerStatus.ABSENT
    with pytest.raises(PostgresError, match="no complete data directory"):
        await old.start(standby=True)
    member = Member("a", new_incarnation())
    await old.clone(lab.upstream("b"), member, nothing)
    assert old.incarnation() == member.incarnation
    await lab.join(old, "b", member)


async def test_another_clusters_directory_is_refused(lab: Lab) -> None:
    await lab.primary("a")
    lab_b = lab.server("b")
    await lab_b.initialize()
    with pytest.raises(ConfigurationError, match="another cluster"):
        await lab_b.rewind(lab.upstream("a"), Position(9, Lsn(1 << 40)), nothing)
    identifier = lab_b.system_identifier()
    with pytest.raises(ConfigurationError, match="another cluster"):
        await lab_b.clone(lab.upstream("a"), Member("b", new_incarnation()), nothing)
    assert lab_b.system_identifier() == identifier


async def test_an_unreachable_source_is_said(lab: Lab) -> None:
    server = await lab.primary("a")
    await server.stop("fast", 10_000)
    end = await server.end_of_log()
    with pytest.raises(PostgresError, match="cannot ask b"):
        await server.rewind(lab.upstream("b"), end, nothing)
    assert (await server.view()).status is ServerStatus.STOPPED
    with pytest.raises(PostgresError, match="pg_basebackup from b failed"):
        await server.clone(lab.upstream("b"), Member("a", new_incarnation()), nothing)
    assert (await server.view()).status is ServerStatus.STOPPED


async def test_a_cancelled_clone_leaves_nothing(lab: Lab) -> None:
    await lab.primary("a")
    await lab.execute("a", "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
    server = lab.server("b")
    copying = asyncio.Event()

    def progress(step: str, fraction: float | None) -> None:
        copying.set()

    task = asyncio.create_task(server.clone(lab.upstream("a"), Member("b", new_incarnation()), progress))
    await copying.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await server.view()).status is ServerStatus.ABSENT
    assert server.incarnation() is None
    side = lab.data_dir("b").with_name("data.holdfast")
    assert not (side / "staging").exists()
    assert not [p for p in psutil.process_iter() if _works_in(p, str(side))]
    member = Member("b", new_incarnation())
    await server.clone(lab.upstream("a"), member, nothing)
    assert server.incarnation() == member.incarnation


def _works_in(process: psutil.Process, directory: str) -> bool:
    try:
        return process.cwd() == directory
    except psutil.Error:
        return False


async def test_an_interrupted_initialize_leaves_nothing(lab: Lab) -> None:
    server = lab.server("a")
    task = asyncio.create_task(server.initialize())
    staging = lab.data_dir("a").with_name("data.holdfast") / "staging"
    while not (staging / "PG_VERSION").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await server.view()).status is ServerStatus.ABSENT
    assert not staging.exists()


async def test_a_directory_with_content_is_not_initialized(lab: Lab) -> None:
    server = lab.server("a")
    lab.data_dir("a").mkdir(parents=True)
    (lab.data_dir("a") / "precious").touch()
    with pytest.raises(ConfigurationError, match=r"postgres\.data_dir .* not empty"):
        await server.initialize()
    assert (lab.data_dir("a") / "precious").exists()


@pytest.mark.parametrize("rows", [10, 5000])
async def test_end_of_log_is_what_the_server_had_flushed(lab: Lab, rows: int) -> None:
    primary = await lab.primary("a")
    await lab.execute("a", f"CREATE TABLE t AS SELECT repeat('x', 500), i FROM generate_series(1, {rows}) AS i")
    flushed = await primary.flushed_lsn()
    await primary.kill()
    assert await primary.end_of_log() >= Position(1, flushed)


async def test_end_of_log_at_the_end_of_a_segment(lab: Lab) -> None:
    primary = await lab.primary("a")
    ((switched,),) = await lab.execute("a", "SELECT pg_switch_wal()::text")
    assert switched
    flushed = await primary.flushed_lsn()
    await primary.kill()
    end = await primary.end_of_log()
    assert end >= Position(1, flushed)
    standby = lab.server("a")
    await standby.start(standby=True)
    view = await lab.until(standby, lambda v: v.status is ServerStatus.STANDBY)
    assert view.position == end


async def test_end_of_log_and_a_standby_agree_after_a_crash_under_load(lab: Lab) -> None:
    """Whatever was half written when it was killed: the end is where a start finds it."""
    primary = await lab.primary("a")
    stop = asyncio.Event()

    await lab.execute("a", "CREATE TABLE filler (i int, filler text)")
    writers = [asyncio.create_task(write(lab, "a", stop)) for _ in range(3)]
    start = await primary.flushed_lsn()
    await lab.until(primary, lambda v: v.position is not None and v.position.lsn > start + 40_000_000)
    await primary.kill()
    stop.set()
    await asyncio.gather(*writers)
    end = await primary.end_of_log()
    await primary.start(standby=True)
    view = await lab.until(primary, lambda v: v.status is ServerStatus.STANDBY)
    assert view.position == end


async def test_what_is_beyond_the_fork_is_copied_and_listed_before_it_is_taken_back(lab: Lab) -> None:
    """Inserts, updates, deletes, subtransactions, prepared transactions, several tables: each listed exactly."""
    two_phases = {**PARAMETERS, "max_prepared_transactions": "5"}
    lab.settings_of("b", parameters=two_phases)
    old = await lab.primary("a", parameters=two_phases)
    new, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t (i int PRIMARY KEY, words text)")
    await lab.execute("a", "CREATE TABLE u (i int)")
    await lab.execute("a", "INSERT INTO t SELECT i, repeat('x', 3000) FROM generate_series(1, 10) i")
    await lab.until_equal(old, new)
    await new.detach()
    session = await lab.connect("a")
    expected: dict[int, dict[str, Tuples]] = {}

    async def transaction(wrote: dict[str, Tuples], *statements: str) -> None:
        async with session.transaction():
            for statement in statements:
                await session.execute(statement.encode())
            cursor = await session.execute("SELECT pg_current_xact_id()::text::bigint")
            (xid,) = await cursor.fetchone() or (0,)
        expected[int(str(xid))] = wrote

    await transaction({"t": Tuples(inserted=3)}, "INSERT INTO t SELECT i, 'y' FROM generate_series(101, 103) i")
    await transaction(
        {"t": Tuples(updated=2, deleted=1)}, "UPDATE t SET words = 'z' WHERE i < 3", "DELETE FROM t WHERE i = 5"
    )
    await transaction(
        {"t": Tuples(inserted=1), "u": Tuples(inserted=2)},
        "INSERT INTO u VALUES (1)", "SAVEPOINT s", "INSERT INTO t VALUES (200, 'in a subtransaction')",
        "RELEASE s", "INSERT INTO u VALUES (2)",
    )  # fmt: skip
    for statement in ("BEGIN", "INSERT INTO u VALUES (3)", "PREPARE TRANSACTION 'two phases'"):
        await session.execute(statement.encode())
    for statement in ("BEGIN", "INSERT INTO u VALUES (4)", "ROLLBACK"):
        await session.execute(statement.encode())
    await lab.replace(old, new)
    end = await old.end_of_log()
    lost = await old.rewind(lab.upstream("b"), end, nothing)
    assert isinstance(lost, LostLog)
    assert (lost.fork_lsn, lost.end_lsn) == ((await new.history_of(2))[0].switch_lsn, end.lsn)
    names = {"postgres.public.t": "t", "postgres.public.u": "u"}
    plain = {t.xid: {names[n]: w for n, w in t.relations.items() if n in names} for t in lost.of_clients}
    prepared = [t for t in lost.of_clients if t.prepared_as is not None]
    assert [(t.prepared_as, t.relations) for t in prepared] == [
        ("two phases", {"postgres.public.u": Tuples(inserted=1)})
    ]
    assert {xid: wrote for xid, wrote in plain.items() if xid != prepared[0].xid} == expected
    evidence = Path(lost.evidence_dir)
    assert (evidence / "pg_control").exists()
    assert list((evidence / "pg_wal").glob("0000000100000000*"))
    assert read_accounts(evidence.parents[1]) == [lost]


async def test_a_record_that_is_printed_in_a_very_long_line_is_listed_like_any_other(lab: Lab) -> None:
    """pg_waldump prints all of a message's bytes, three characters for each."""
    old = await lab.primary("a")
    new, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT 1 AS i")
    await lab.until_equal(old, new)
    await new.detach()
    await lab.execute("a", "SELECT pg_logical_emit_message(false, 'long', repeat('x', 4000000))")
    await lab.execute("a", "INSERT INTO t VALUES (2)")
    await lab.replace(old, new)
    lost = await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert isinstance(lost, LostLog)
    assert [t.relations for t in lost.of_clients] == [{"postgres.public.t": Tuples(inserted=1)}]
    assert lost.unread == ""
