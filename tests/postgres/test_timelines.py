"""History files, placeholders and where a log's end belongs."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn, Position, TimelineSwitch
from holdfast.postgres.timelines import (
    is_placeholder,
    located,
    owner_of,
    parse_history,
    placeholder,
    read_history,
    remove_histories_above,
    segment_name,
    timelines_on_disk,
    write_placeholders,
)

SEGMENT = 16 * 1024 * 1024
REAL = "1\t0/1800000\tno recovery target specified\n\n4\t0/2000000\tx\n"
HISTORY = (TimelineSwitch(1, Lsn(0x1800000)), TimelineSwitch(4, Lsn(0x2000000)))


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    (tmp_path / "archive_status").mkdir()
    return tmp_path


def test_history_is_read(wal: Path) -> None:
    (wal / "00000007.history").write_text(REAL)
    assert read_history(wal, 7) == HISTORY
    assert read_history(wal, 1) == ()
    assert read_history(wal, 6) is None
    with pytest.raises(PostgresError, match="history file"):
        parse_history("what is this\n")


def test_the_first_timeline_is_there_without_a_file(wal: Path) -> None:
    with pytest.raises(PostgresError, match="timeline 1 exists already"):
        write_placeholders(wal, 1, None, archived=False)


def test_placeholders_fill_only_the_gaps(wal: Path) -> None:
    (wal / "00000004.history").write_text("1\t0/1800000\tx\n")
    assert write_placeholders(wal, 7, None, archived=True) == [2, 3, 5, 6]
    assert [t for t in timelines_on_disk(wal) if is_placeholder(wal, t)] == [2, 3, 5, 6]
    assert (wal / "00000005.history").read_text() == placeholder(5)
    assert (wal / "archive_status" / "00000005.history.ready").exists()
    assert read_history(wal, 5) is None
    assert write_placeholders(wal, 7, None, archived=True) == []
    with pytest.raises(PostgresError, match="timeline 6 exists already"):
        write_placeholders(wal, 6, None, archived=False)


def test_histories_above_the_end_are_removed(wal: Path) -> None:
    write_placeholders(wal, 5, None, archived=True)
    assert remove_histories_above(wal, 3) == [4]
    assert timelines_on_disk(wal) == [2, 3]
    assert not (wal / "archive_status" / "00000004.history.ready").exists()


def test_segment_names() -> None:
    assert segment_name(1, 0x1800000, SEGMENT) == "000000010000000000000001"
    assert segment_name(0x1F, 0x3_FF00_0000, SEGMENT) == "0000001F00000003000000FF"
    assert segment_name(2, 0x1_0000_0000, 1024 * 1024) == "000000020000000100000000"


@pytest.mark.parametrize(
    ("lsn", "timeline"), [(0x1800000, 1), (0x1800001, 4), (0x2000000, 4), (0x2000001, 7), (0x9000000, 7)]
)
def test_the_byte_before_the_end_decides_the_timeline(lsn: int, timeline: int) -> None:
    assert owner_of(Lsn(lsn), 7, HISTORY) == timeline


def test_a_log_is_located_by_its_segments(wal: Path) -> None:
    (wal / "00000007.history").write_text(REAL)
    for name in ("000000010000000000000001", "000000070000000000000002", "000000080000000000000002.partial"):
        (wal / name).touch()
    (wal / "000000090000000000000002").touch()  # a timeline without a history file
    assert located(wal, Lsn(0x1400000), SEGMENT) == (Position(1, Lsn(0x1400000)), ())
    assert located(wal, Lsn(0x2000001), SEGMENT) == (Position(7, Lsn(0x2000001)), HISTORY)
    (wal / "000000070000000000000001").touch()  # a new timeline's segment begins long before the fork
    assert located(wal, Lsn(0x1400000), SEGMENT) == (Position(1, Lsn(0x1400000)), ())
    assert located(wal, Lsn(0x1900000), SEGMENT) == (Position(4, Lsn(0x1900000)), HISTORY[:1])
    with pytest.raises(PostgresError, match="no segment"):
        located(wal, Lsn(0x9000000), SEGMENT)
