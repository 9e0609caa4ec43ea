"""Each trap of a rejoin (docs/rejoin.md): first that PostgreSQL springs it, then that a rejoin here avoids it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import psycopg.conninfo
import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.lost import LostLog, Tuples
from holdfast.model.lsn import Position, is_on_history
from holdfast.model.register import NO_QUORUM, Member
from holdfast.model.server import ServerStatus
from holdfast.postgres import rejoin
from holdfast.postgres.account import run_as
from holdfast.postgres.anchor import ANCHOR
from holdfast.postgres.control import ControlFile, read_control
from holdfast.postgres.programs import Outcome, run_program
from holdfast.postgres.server import Server
from holdfast.postgres.timelines import segment_name
from tests.postgres.lab import PARAMETERS, PASSWORD, Lab, new_incarnation, nothing
from tests.postgres.test_rejoin import diverged_pair

pytestmark = pytest.mark.live


async def pg_rewind(lab: Lab, target: str, source: str, *options: str) -> Outcome:
    """As somebody would run it by hand."""
    settings = lab.settings_of(source)
    conninfo = psycopg.conninfo.make_conninfo(
        host=settings.host, port=settings.port, user="postgres", password=PASSWORD, dbname="postgres"
    )
    command = ["pg_rewind", "-D", str(lab.data_dir(target)), "--source-server", conninfo, *options]
    return await run_program(lab.installation, command, run_as(None), working_dir=lab.root / target / "run")


async def single_user(lab: Lab, node: str, *options: str) -> Outcome:
    """Run a stopped directory alone, until there is nothing left to do."""
    command = ["postgres", "--single", *options, "-D", str(lab.data_dir(node)), "template1"]
    place = lab.root / node / "run"
    return await run_program(lab.installation, command, run_as(None), stdin="", working_dir=place)


async def control_of(lab: Lab, node: str) -> ControlFile:
    return await read_control(lab.installation, lab.data_dir(node), run_as(None))


async def rejoined(lab: Lab, old: Server, new: Server) -> None:
    """``old`` streams from ``new`` under a new name, and has the same rows."""
    member = Member("a", old.incarnation() or new_incarnation())
    await old.set_incarnation(member.incarnation)
    await lab.join(old, "b", member)
    await lab.execute("b", "INSERT INTO t VALUES (2)")
    await lab.until_equal(new, old)
    assert await lab.execute("a", "SELECT i FROM t ORDER BY i") == [(1,), (2,)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_log_beyond_the_fork_started_as_it_is_waits_for_ever_and_shows_lost_rows(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    end = await old.end_of_log()
    await old.start(standby=True)
    await lab.until(old, lambda v: v.status is ServerStatus.STANDBY)
    await lab.make_slots("b")
    await old.follow(lab.upstream("b"), Member("a", new_incarnation()))
    await lab.until_log("a", "forked off current database system timeline")
    lost = await lab.execute("a", "SELECT count(*) FROM t WHERE i >= 100")
    assert lost == [(101,)], "a reader sees what the cluster does not have"
    stuck = (await old.view()).position
    assert stuck is not None
    assert stuck.timeline == 1, "it may say that it streams (docs/protocol.md), and never comes to the new timeline"
    # The rule: it does not fit, so it is rewound before it is started (core.rules, rejoin.rewind).
    assert not is_on_history(end, 3, await new.history_of(3))
    await old.stop("immediate", 5000)
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    await rejoined(lab, old, new)


async def test_a_hard_linked_copy_of_the_log_is_changed_by_the_recovery_that_follows(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    end = await old.end_of_log()
    segment = lab.data_dir("a") / "pg_wal" / segment_name(1, end.lsn, (await control_of(lab, "a")).segment_bytes)
    linked, before = lab.root / "a" / "linked", digest(segment)
    os.link(segment, linked)
    lost = await old.rewind(lab.upstream("b"), end, nothing)
    assert digest(linked) != before, "the trap: the evidence has been written to"
    assert isinstance(lost, LostLog)
    assert digest(Path(lost.evidence_dir) / "pg_wal" / segment.name) == before
    await rejoined(lab, old, new)


async def test_a_directory_with_neither_checksums_nor_hints_cannot_be_rewound_and_is_cloned(lab: Lab) -> None:
    """Ours have both; one that was taken over from elsewhere may not."""
    old, new = await diverged_pair(lab)
    await old.start(standby=False)
    await lab.until(old, lambda v: v.status is ServerStatus.PRIMARY)
    await old.stop("fast", 10_000)
    command = ["pg_checksums", "--disable", "-D", str(lab.data_dir("a"))]
    outcome = await run_program(lab.installation, command, run_as(None), working_dir=lab.root / "a" / "run")
    assert outcome.status == 0, outcome.said
    assert (await single_user(lab, "a", "-c", "wal_log_hints=off")).status == 0
    outcome = await pg_rewind(lab, "a", "b", "--dry-run")
    assert "needs to use either data checksums or" in outcome.said, outcome.said
    with pytest.raises(PostgresError, match="clone is needed"):
        await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert (await old.view()).status is ServerStatus.ABSENT
    await old.clone(lab.upstream("b"), Member("a", new_incarnation()), nothing)
    await rejoined(lab, old, new)


async def test_a_leftover_standby_signal_makes_the_recovery_of_pg_rewind_fail(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    (lab.data_dir("a") / "standby.signal").touch()
    outcome = await pg_rewind(lab, "a", "b")
    assert outcome.status != 0
    assert "standby mode is not supported by single-user servers" in outcome.said, outcome.said
    assert (lab.data_dir("a") / "standby.signal").exists()
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    await rejoined(lab, old, new)


async def promoted_without_a_checkpoint(lab: Lab) -> tuple[Server, Server]:
    """A diverged pair, whose new primary has so much to write that its first checkpoint takes minutes."""
    old = await lab.primary("a")
    new, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT 1 AS i")
    await lab.execute("a", "CREATE TABLE filler AS SELECT i, repeat('x', 700) FROM generate_series(1, 8000) i")
    await lab.until_equal(old, new)
    await new.detach()
    await lab.execute("a", "INSERT INTO t SELECT generate_series(100, 200)")
    await old.stop("fast", 10_000)
    await new.promote(2)
    await lab.until(new, lambda v: v.status is ServerStatus.PRIMARY)
    await new.set_quorum(NO_QUORUM)
    await new.write_epoch_record(2)
    return old, new


async def test_just_after_a_promotion_pg_rewind_sees_nothing_to_do_although_rows_diverge(lab: Lab) -> None:
    old, new = await promoted_without_a_checkpoint(lab)
    assert (await control_of(lab, "b")).timeline == 1, "the source's control file does not know of its promotion yet"
    outcome = await pg_rewind(lab, "a", "b", "--dry-run")
    # PostgreSQL 16 and later look further than at the last checkpoint.
    assert ("no rewind required" in outcome.said) is (lab.installation.major < 16), outcome.said
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert (await control_of(lab, "b")).timeline == 2, "the source was told to write a checkpoint first"
    await rejoined(lab, old, new)


async def test_nothing_to_rewind_beyond_the_fork_is_an_error_whoever_says_so(lab: Lab) -> None:
    """What pg_rewind says of a source that has not written a checkpoint yet, held against what was computed."""
    if lab.installation.major >= 16:
        pytest.skip("pg_rewind of PostgreSQL 16 and later is not misled")
    old, new = await promoted_without_a_checkpoint(lab)
    outcome = await pg_rewind(lab, "a", "b", "--dry-run")
    assert outcome.status == 0
    end = await old.end_of_log()
    found = rejoin.Source(str(old.system_identifier()), 2, await new.history_of(2), await new.flushed_lsn())
    with pytest.raises(PostgresError, match="sees nothing to rewind although the log ends beyond the fork"):
        await rejoin.verify_rewound(old._instance, outcome, found, end)


async def went_on_alone(lab: Lab, *, anchored: bool) -> tuple[Server, Server]:
    """An old primary that wrote checkpoints after the fork, and lets go of log as soon as it may."""
    old = await lab.primary("a", parameters={**PARAMETERS, "wal_keep_size": "0", "min_wal_size": "32MB"})
    new, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT 1 AS i")
    await lab.execute("a", "CREATE TABLE filler (words text)")
    await lab.execute("a", "CHECKPOINT")
    await old.ensure_slots(["a", "b"])
    await lab.execute("a", FILLER)  # the checkpoint lies some files of log before the fork
    flushed = await old.flushed_lsn()
    await lab.until_equal(old, new)
    has_all = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = 'holdfast_b' AND restart_lsn >= '{flushed}'"
    await lab.until_rows("a", has_all)
    await old.ensure_slots(["a", "b"])
    if not anchored:
        await lab.execute("a", f"SELECT pg_drop_replication_slot('{ANCHOR}')")
    await new.detach()
    await lab.execute("a", "INSERT INTO t SELECT generate_series(100, 200)")
    for _ in range(3):
        await lab.execute("a", FILLER)
        await lab.execute("a", "CHECKPOINT")
    await lab.replace(old, new)
    return old, new


FILLER = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 9000)"


async def test_a_primary_that_went_on_alone_lets_go_of_the_log_that_its_rewind_needs(lab: Lab) -> None:
    old, _ = await went_on_alone(lab, anchored=False)
    with pytest.raises(PostgresError, match=r"could not find previous WAL record|could not open file"):
        await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)


async def test_log_is_kept_back_to_the_last_checkpoint_that_all_have(lab: Lab) -> None:
    old, new = await went_on_alone(lab, anchored=True)
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    await rejoined(lab, old, new)


async def test_without_its_signal_a_retry_runs_recovery_on_a_rewound_directory(lab: Lab) -> None:
    await diverged_pair(lab)
    await lab.execute("b", "CHECKPOINT")
    first = await pg_rewind(lab, "a", "b")
    assert first.status == 0, first.said
    assert not (lab.data_dir("a") / "standby.signal").exists()
    assert (lab.data_dir("a") / "backup_label").exists()
    await pg_rewind(lab, "a", "b")
    assert not (lab.data_dir("a") / "backup_label").exists(), "the trap: it has been recovered, alone, as a primary"


async def test_a_rewound_directory_has_its_signal_and_a_retry_does_not_recover_it(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert (lab.data_dir("a") / "standby.signal").exists()
    assert (await single_user(lab, "a")).status != 0, "nobody recovers it alone"
    await rejoined(lab, old, new)


async def test_what_was_written_before_the_fork_and_committed_beyond_it_is_listed(lab: Lab) -> None:
    """Its rows are on both sides; that they count is known to the old primary alone."""
    old = await lab.primary("a")
    new, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT 1 AS i")
    session = await lab.connect("a")
    await session.execute("BEGIN")
    await session.execute("INSERT INTO t SELECT generate_series(100, 102)")
    await lab.execute("a", "CREATE TABLE u AS SELECT 1 AS i")  # brings the log so far to the standby
    await lab.until_equal(old, new)
    await new.detach()
    await session.execute("COMMIT")
    await lab.replace(old, new)
    end = await old.end_of_log()
    fork = (await new.history_of(2))[0].switch_lsn
    assert end > Position(1, fork)
    lost = await old.rewind(lab.upstream("b"), end, nothing)
    assert isinstance(lost, LostLog)
    assert [t.relations for t in lost.of_clients] == [{"postgres.public.t": Tuples(inserted=3)}]
    assert lost.salvage is not None
    assert lost.salvage.rows == 3
    await rejoined(lab, old, new)
