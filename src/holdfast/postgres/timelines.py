"""Timelines on disk: history files, the placeholders that keep timeline == epoch, and where a log ends."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import History, Lsn, Position, TimelineSwitch
from holdfast.postgres.account import OsUser
from holdfast.postgres.files import sync_directory, write_atomically

_HISTORY_FILE = re.compile(r"\A([0-9A-F]{8})\.history\Z")
_SEGMENT_FILE = re.compile(r"\A[0-9A-F]{24}\Z")
_PLACEHOLDER_MARK = "# holdfast placeholder"


def placeholder(timeline: int) -> str:
    """The content of a placeholder: the same bytes for the same timeline everywhere; PostgreSQL reads a comment."""
    return f"{_PLACEHOLDER_MARK}: timeline {timeline} is left out, so that timelines are epochs\n"


def history_name(timeline: int) -> str:
    """The name of a timeline's history file."""
    return f"{timeline:08X}.history"


def parse_history(text: str) -> History:
    """Read a history file; raises PostgresError for one that is none."""
    switches = []
    for line in text.splitlines():
        fields = line.split(None, 2)
        if not fields or fields[0].startswith("#"):
            continue
        try:
            switches.append(TimelineSwitch(int(fields[0]), Lsn.parse(fields[1])))
        except (ValueError, IndexError) as error:
            raise PostgresError(f"a timeline history file has the line {line!r}") from error
    return tuple(switches)


def read_history(wal_dir: Path, timeline: int) -> History | None:
    """The history of a timeline; None if the file is absent or a placeholder. Timeline 1 has an empty one."""
    if timeline == 1:
        return ()
    try:
        text = (wal_dir / history_name(timeline)).read_text()
    except OSError:
        return None
    return None if text.startswith(_PLACEHOLDER_MARK) else parse_history(text)


def timelines_on_disk(wal_dir: Path) -> list[int]:
    """All timelines that have a history file, placeholders too, in ascending order."""
    found = (_HISTORY_FILE.match(name) for name in os.listdir(wal_dir))
    return sorted(int(match[1], 16) for match in found if match)


def write_placeholders(wal_dir: Path, epoch: int, owner: OsUser | None, *, archived: bool) -> list[int]:
    """Fill every gap below ``epoch``, so that PostgreSQL picks it; durable. Returns the timelines filled.

    ``archived`` marks them for the archiver too, which takes history files in ascending order and before segments.
    Raises PostgresError if ``epoch`` or a later timeline is there already.
    """
    there = timelines_on_disk(wal_dir)
    newest = there[-1] if there else 1  # the first one has no history file
    if newest >= epoch:
        raise PostgresError(f"cannot promote to epoch {epoch}: timeline {newest} exists already in {wal_dir}")
    missing = [t for t in range(2, epoch) if t not in there]
    for timeline in missing:
        write_atomically(wal_dir / history_name(timeline), placeholder(timeline), owner, synced=True)
        if archived:
            write_atomically(wal_dir / "archive_status" / f"{history_name(timeline)}.ready", b"", owner, synced=True)
    if missing:
        sync_directory(wal_dir)
    return missing


def remove_histories_above(wal_dir: Path, timeline: int) -> list[int]:
    """Remove the history files above ``timeline``; a later upstream sends the real ones again. Returns which."""
    removed = [t for t in timelines_on_disk(wal_dir) if t > timeline]
    for each in removed:
        name = history_name(each)
        (wal_dir / name).unlink(missing_ok=True)
        for state in ("ready", "done"):
            (wal_dir / "archive_status" / f"{name}.{state}").unlink(missing_ok=True)
    if removed:
        sync_directory(wal_dir)
    return removed


def is_placeholder(wal_dir: Path, timeline: int) -> bool:
    """Whether the history file of ``timeline`` is a placeholder."""
    try:
        return (wal_dir / history_name(timeline)).read_text().startswith(_PLACEHOLDER_MARK)
    except OSError:
        return False


def segment_name(timeline: int, lsn: int, segment_bytes: int) -> str:
    """The name of the segment file that holds byte ``lsn``."""
    number, per_id = lsn // segment_bytes, 0x1_0000_0000 // segment_bytes
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def timelines_of_segment(names: Iterable[str], lsn: int, segment_bytes: int) -> list[int]:
    """The timelines, newest first, that have a segment file for byte ``lsn``."""
    wanted = segment_name(0, lsn, segment_bytes)[8:]
    return sorted((int(n[:8], 16) for n in names if n[8:] == wanted and _SEGMENT_FILE.match(n)), reverse=True)


def owner_of(lsn: Lsn, timeline: int, history: History) -> int:
    """The timeline that wrote the byte before ``lsn``, in the log of ``timeline``.

    A standby that has just begun to receive a new timeline gets its segment from the start, long before the fork;
    it is on the new timeline only once it has a byte beyond the fork.
    """
    for switch in history:
        if lsn <= switch.switch_lsn:
            return switch.timeline
    return timeline


def located(wal_dir: Path, lsn: Lsn, segment_bytes: int) -> tuple[Position, History]:
    """The position of a log that ends at ``lsn``, with its timeline's history; raises PostgresError if untellable."""
    names = os.listdir(wal_dir)
    for timeline in timelines_of_segment(names, max(lsn - 1, 0), segment_bytes):
        history = read_history(wal_dir, timeline)
        if history is None:
            continue
        own = owner_of(lsn, timeline, history)
        return Position(own, lsn), history_before(own, history)
    raise PostgresError(f"no segment in {wal_dir} holds the end of the log, {lsn}")


def history_before(timeline: int, history: History) -> History:
    """The part of a history that lies before ``timeline``."""
    return tuple(s for s in history if s.timeline < timeline)
