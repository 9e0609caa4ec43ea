"""The end of a cleanly stopped log, read from the files of real servers: what is read is right, or nothing is."""

from __future__ import annotations

import struct
from pathlib import Path

import psutil
import pytest

from holdfast.model.lsn import Position
from holdfast.model.server import ServerStatus
from holdfast.postgres.control import read_control
from holdfast.postgres.process import processes_in
from holdfast.postgres.shutdown import CleanEnd, clean_end
from holdfast.postgres.timelines import segment_name
from tests.postgres.lab import DEADLINE_S, Lab

pytestmark = pytest.mark.live

PAGE_BYTES = 8192
SHUT_DOWN_STATE = 1
STATE_OFFSET = 16

FILL_PAGE = """
DO $$ BEGIN
  LOOP
    PERFORM pg_logical_emit_message(false, 't', 'x');
    EXIT WHEN mod(pg_current_wal_insert_lsn() - '0/0', 8192) > 8192 - 100;
  END LOOP;
END $$
"""
"""Leaves less of the page than a shutdown checkpoint takes."""


async def stopped_cleanly(lab: Lab) -> CleanEnd:
    """A primary whose log ends with a shutdown checkpoint on one page, with room behind it."""
    primary = await lab.primary("a")
    await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 1000)")
    await lab.execute("a", "CHECKPOINT")
    await primary.stop("fast", 30_000)
    found = clean_end(lab.data_dir("a"))
    assert found is not None
    return found


def segment_of(lab: Lab, found: CleanEnd) -> Path:
    return lab.data_dir("a") / "pg_wal" / segment_name(found.timeline, found.checkpoint, found.segment_bytes)


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


async def test_it_is_what_a_standby_has_received_and_what_the_log_itself_says(lab: Lab) -> None:
    primary = await lab.primary("a")
    standby, _ = await lab.standby("b")
    await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 1000)")
    await primary.stop("fast", 30_000)
    found = clean_end(lab.data_dir("a"))
    assert found is not None
    end = Position(1, found.end)
    assert await primary.end_of_log() == end
    view = await lab.until(standby, lambda v: v.position is not None and v.position >= end)
    assert view.position == end
    # A newer history file: now the log is read by pg_waldump, and says the same.
    (lab.data_dir("a") / "pg_wal" / "00000002.history").write_text("1\t0/1000000\ttold by nobody\n")
    assert await primary.end_of_log() == end


async def test_a_start_goes_on_exactly_there(lab: Lab) -> None:
    found = await stopped_cleanly(lab)
    again = lab.server("a")
    await again.start(standby=True)
    view = await lab.until(again, lambda v: v.status is ServerStatus.STANDBY)
    assert view.position == Position(1, found.end)


async def test_a_checkpoint_that_crosses_a_page_is_left_to_pg_waldump(lab: Lab) -> None:
    primary = await lab.primary("a")
    for _ in range(10):  # a server's own records may come between
        await lab.execute("a", FILL_PAGE)
        await primary.stop("fast", 30_000)
        found, end = clean_end(lab.data_dir("a")), await primary.end_of_log()
        begins = (await read_control(lab.installation, lab.data_dir("a"), None)).redo
        if begins // PAGE_BYTES < (end.lsn - 1) // PAGE_BYTES:
            assert found is None
            break
        assert found is None or end == Position(1, found.end)
        await primary.start(standby=False)
        await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)
    else:
        pytest.fail("no checkpoint crossed a page")
    again = lab.server("a")
    await again.start(standby=True)
    assert (await lab.until(again, lambda v: v.status is ServerStatus.STANDBY)).position == end


async def test_a_record_that_is_torn_or_another_one_is_not_believed(lab: Lab) -> None:
    found = await stopped_cleanly(lab)
    segment, offset = segment_of(lab, found), found.checkpoint % found.segment_bytes
    sound = segment.read_bytes()[offset : offset + 64]
    for at in (0, 4, 8, 16, 17, 20, 26, 34, 60):
        write_at(segment, offset + at, bytes([sound[at] ^ 0x10]))
        assert clean_end(lab.data_dir("a")) is None, at
        write_at(segment, offset + at, sound[at : at + 1])
    assert clean_end(lab.data_dir("a")) == found


async def test_a_record_that_follows_is_not_passed_over(lab: Lab) -> None:
    """As a start leaves it that is killed before the control file says that it started."""
    found = await stopped_cleanly(lab)
    segment, offset = segment_of(lab, found), found.end % found.segment_bytes
    write_at(segment, offset, struct.pack("=IIQ", 50, 0, found.checkpoint))
    assert clean_end(lab.data_dir("a")) is None
    write_at(segment, offset, struct.pack("=IIQ", 50, 0, found.checkpoint - 8))  # left over from a recycled file
    assert clean_end(lab.data_dir("a")) == found


async def test_files_that_are_missing_or_cut_tell_nothing(lab: Lab) -> None:
    found = await stopped_cleanly(lab)
    segment, control = segment_of(lab, found), lab.data_dir("a") / "global" / "pg_control"
    content, told = segment.read_bytes(), control.read_bytes()
    for size in (0, found.segment_bytes - 1, found.checkpoint % found.segment_bytes + 10):
        segment.write_bytes(content[:size])
        assert clean_end(lab.data_dir("a")) is None
    segment.unlink()
    assert clean_end(lab.data_dir("a")) is None
    segment.write_bytes(content)
    control.write_bytes(told[:40])
    assert clean_end(lab.data_dir("a")) is None
    control.write_bytes(told)
    assert clean_end(lab.data_dir("a")) == found


async def test_only_a_primary_that_stopped_in_good_order_has_one(lab: Lab) -> None:
    primary = await lab.primary("a")
    standby, _ = await lab.standby("b")
    control = lab.data_dir("a") / "global" / "pg_control"
    assert clean_end(lab.data_dir("a")) is None  # it runs
    await standby.stop("fast", 30_000)
    assert clean_end(lab.data_dir("b")) is None
    await primary.stop("immediate", 30_000)
    assert clean_end(lab.data_dir("a")) is None
    (state,) = struct.unpack_from("=i", control.read_bytes(), STATE_OFFSET)
    assert state != SHUT_DOWN_STATE
    await primary.start(standby=False)
    await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)
    await primary.stop("fast", 30_000)
    assert clean_end(lab.data_dir("a")) is not None


async def test_a_fast_stop_leaves_no_process(lab: Lab) -> None:
    """It is believed when the postmaster says so itself: a search costs time while clients wait."""
    primary = await lab.primary("a")
    session = await lab.connect("a")
    await session.execute("BEGIN")
    await primary.stop("fast", 30_000)
    left = {p.pid: p for p in processes_in(lab.data_dir("a"))}
    # The postmaster does not wait for the one that writes the log: it ends once nobody can say anything any more.
    assert {title for title in map(title_of, left.values()) if title} <= {"postgres: a: logger"}
    _, still_there = psutil.wait_procs(left.values(), timeout=DEADLINE_S)
    assert still_there == []
    assert primary.exited.is_set()


def title_of(process: psutil.Process) -> str | None:
    """What a process calls itself; None if it has ended meanwhile."""
    try:
        return " ".join(process.cmdline()).strip() or None
    except psutil.NoSuchProcess:
        return None


async def test_files_made_ahead_do_not_hide_the_log(lab: Lab) -> None:
    """``pg_waldump`` learns the size of segments from the first file that the directory happens to list."""
    primary = await lab.primary("a")
    await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 1000)")
    await primary.stop("immediate", 30_000)
    end = await primary.end_of_log()
    assert end is not None
    control = await read_control(lab.installation, lab.data_dir("a"), None)
    made_ahead = [end.lsn + n * control.segment_bytes for n in range(1, 40)]
    for lsn in made_ahead:
        path = lab.data_dir("a") / "pg_wal" / segment_name(end.timeline, lsn, control.segment_bytes)
        with path.open("wb") as file:
            file.truncate(control.segment_bytes)
    assert await lab.server("a").end_of_log() == end
