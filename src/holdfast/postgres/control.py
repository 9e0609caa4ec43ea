"""The control file and the end of the log of a stopped data directory."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import History, Lsn, Position
from holdfast.postgres.account import OsUser
from holdfast.postgres.files import sync_directory, sync_file
from holdfast.postgres.installation import Installation
from holdfast.postgres.programs import run_program
from holdfast.postgres.shutdown import clean_end
from holdfast.postgres.timelines import (
    is_placeholder,
    owner_of,
    read_history,
    segment_name,
    timelines_on_disk,
)

_PAGE_BYTES = 8192
_SHORT_HEADER_BYTES = 24
_LONG_HEADER_BYTES = 40
_ERROR_AFTER = re.compile(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+):")
_RECORD = re.compile(
    r"rmgr: (\S+)\s+len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*\d+, lsn: ([0-9A-F]+/[0-9A-F]+), prev \S+ desc: (\S*)"
)


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What ``pg_controldata`` says, as far as we need it."""

    state: str
    timeline: int
    checkpoint: Lsn
    redo: Lsn
    minimum_timeline: int
    minimum_end: Lsn
    segment_bytes: int

    @property
    def shut_down(self) -> bool:
        """Whether the server was stopped cleanly."""
        return self.state in ("shut down", "shut down in recovery")

    @property
    def newest_timeline(self) -> int:
        """The newest timeline that the data files are known to have reached."""
        return max(self.timeline, self.minimum_timeline)


async def read_control(installation: Installation, data_dir: Path, user: OsUser | None) -> ControlFile:
    """Read the control file; raises PostgresError if it cannot be."""
    outcome = await run_program(installation, ["pg_controldata", "-D", str(data_dir)], user)
    said = dict(line.split(":", 1) for line in outcome.output.splitlines() if ":" in line)
    try:
        return ControlFile(
            state=said["Database cluster state"].strip(),
            timeline=int(said["Latest checkpoint's TimeLineID"]),
            checkpoint=Lsn.parse(said["Latest checkpoint location"].strip()),
            redo=Lsn.parse(said["Latest checkpoint's REDO location"].strip()),
            minimum_timeline=int(said["Min recovery ending loc's timeline"]),
            minimum_end=Lsn.parse(said["Minimum recovery ending location"].strip()),
            segment_bytes=int(said["Bytes per WAL segment"]),
        )
    except (KeyError, ValueError) as error:
        raise PostgresError(f"the control file in {data_dir} cannot be read: {outcome.last_words}") from error


def dump_arguments(wal_dir: Path, timeline: int, start: Lsn, end: Lsn, segment_bytes: int) -> list[str]:
    """What to read with ``pg_waldump``.

    The first file is named: else it learns the size of segments from whichever file the directory lists first, and
    gives up if PostgreSQL has made that one ahead and not written to it. Then the last one must be named, too.
    Without an end it waits five seconds for a segment file that does not exist.
    """
    files = (segment_name(timeline, start, segment_bytes), segment_name(timeline, end - 1, segment_bytes))
    return ["-p", str(wal_dir), "-s", str(start), "-e", str(end), *files]


class LogReader:
    """Finds the end of a stopped server's log, the way a start would; with ``pg_waldump`` unless it ended cleanly."""

    def __init__(self, installation: Installation, data_dir: Path, user: OsUser | None) -> None:
        self._installation = installation
        self._data_dir = data_dir
        self._wal_dir = data_dir / "pg_wal"
        self._user = user
        self._last_words = "it ended without a word"

    async def end(self) -> Position:
        """Where the log ends, brought to the disk first; raises PostgresError if it cannot be told."""
        stopped = await asyncio.to_thread(self._clean_end)
        if stopped is not None:
            return stopped
        control = await read_control(self._installation, self._data_dir, self._user)
        candidates = await asyncio.to_thread(self._candidates, control)
        for timeline, start, history in candidates:
            end = await self._end_from(timeline, start, control.segment_bytes)
            if end is None:
                continue
            await asyncio.to_thread(self._sync, start, end, control.segment_bytes)
            return Position(owner_of(end, timeline, history), end)
        raise PostgresError(
            f"the log of {self._data_dir} has no valid record at {control.redo}, where recovery starts "
            f"({self._last_words})"
        )

    def _clean_end(self) -> Position | None:
        """The end that a clean shutdown left; None if there was none, or files of newer timelines must be looked at."""
        found = clean_end(self._data_dir)
        if found is None or max(timelines_on_disk(self._wal_dir), default=0) > found.timeline:
            return None
        self._sync(found.checkpoint, found.end, found.segment_bytes)
        history = read_history(self._wal_dir, found.timeline) or ()
        return Position(owner_of(found.end, found.timeline, history), found.end)

    def _candidates(self, control: ControlFile) -> list[tuple[int, Lsn, History]]:
        """Timelines that the log may end on, newest first, each with where to begin to read."""
        found = []
        for timeline in reversed(timelines_on_disk(self._wal_dir)):
            if timeline <= control.timeline or is_placeholder(self._wal_dir, timeline):
                continue
            history = read_history(self._wal_dir, timeline) or ()
            left = [s.switch_lsn for s in history if s.timeline == control.timeline]
            if left and control.redo <= left[0]:
                found.append((timeline, history[-1].switch_lsn, history))
        own = read_history(self._wal_dir, control.timeline) or ()
        found.append((control.timeline, control.redo, own))
        return found

    async def _end_from(self, timeline: int, start: Lsn, segment_bytes: int) -> Lsn | None:
        """The end of the log of ``timeline`` from ``start``; None if it has no record there."""
        limit = await asyncio.to_thread(self._end_of_files, timeline, start, segment_bytes)
        if limit <= start:
            return None
        first = await self._record(timeline, start, limit, segment_bytes)
        if first is None or first.start > _first_byte(start, segment_bytes):
            return None
        summary = await self._dump(timeline, start, limit, segment_bytes, "--stats")
        match = _ERROR_AFTER.search(summary)
        last = await self._record(timeline, Lsn.parse(match[1]), limit, segment_bytes) if match else None
        if last is None:
            last = await self._last_before(timeline, first.start, limit, segment_bytes)
        return last.end(segment_bytes)

    def _end_of_files(self, timeline: int, start: Lsn, segment_bytes: int) -> Lsn:
        """The end of the last segment file of the unbroken row that begins at ``start``."""
        at = start - start % segment_bytes
        while (self._wal_dir / segment_name(timeline, at, segment_bytes)).exists():
            at += segment_bytes
        return Lsn(at)

    async def _last_before(self, timeline: int, start: Lsn, limit: Lsn, segment_bytes: int) -> _Record:
        """The last record of a log that ends with a full segment, which ``pg_waldump`` ends without a complaint."""
        begin = limit
        while begin > start:
            begin = Lsn(max(int(start), begin - segment_bytes))
            records = _records(await self._dump(timeline, begin, limit, segment_bytes))
            if records:
                return records[-1]
        raise PostgresError(f"the log of timeline {timeline} in {self._wal_dir} cannot be read to its end")

    async def _record(self, timeline: int, at: Lsn, limit: Lsn, segment_bytes: int) -> _Record | None:
        records = _records(await self._dump(timeline, at, limit, segment_bytes, "--limit=1"))
        return records[0] if records else None

    async def _dump(self, timeline: int, start: Lsn, limit: Lsn, segment_bytes: int, *options: str) -> str:
        where = dump_arguments(self._wal_dir, timeline, start, limit, segment_bytes)
        outcome = await run_program(self._installation, ["pg_waldump", *options, *where], self._user)
        if outcome.status != 0:
            self._last_words = outcome.last_words
        return outcome.said

    def _sync(self, start: Lsn, end: Lsn, segment_bytes: int) -> None:
        """What a killed server wrote may be in memory only; a position that is told to others must be on the disk."""
        for number in range(start // segment_bytes, end // segment_bytes + 1):
            for timeline in (1, *timelines_on_disk(self._wal_dir)):
                path = self._wal_dir / segment_name(timeline, number * segment_bytes, segment_bytes)
                if path.exists():
                    sync_file(path)
        sync_directory(self._wal_dir)


@dataclass(frozen=True, slots=True)
class _Record:
    start: Lsn
    total_bytes: int
    is_switch: bool

    def end(self, segment_bytes: int) -> Lsn:
        """The first byte after the record (``xlogreader.c``, ``XLogDecodeNextRecord``)."""
        at, left = int(self.start), self.total_bytes
        while left > _PAGE_BYTES - at % _PAGE_BYTES:
            left -= _PAGE_BYTES - at % _PAGE_BYTES
            at += _PAGE_BYTES - at % _PAGE_BYTES
            at = _first_byte(Lsn(at), segment_bytes)
        at += (left + 7) & ~7
        if self.is_switch and at % segment_bytes:
            at += segment_bytes - at % segment_bytes
        return Lsn(at)


def _first_byte(at: Lsn, segment_bytes: int) -> Lsn:
    """Where the first record at or after ``at`` can start: behind the page's header."""
    if at % segment_bytes == 0:
        return Lsn(at + _LONG_HEADER_BYTES)
    if at % _PAGE_BYTES == 0:
        return Lsn(at + _SHORT_HEADER_BYTES)
    return at


def _records(text: str) -> list[_Record]:
    found = []
    for match in _RECORD.finditer(text):
        is_switch = match[1] == "XLOG" and match[4].startswith("SWITCH")
        found.append(_Record(Lsn.parse(match[3]), int(match[2]), is_switch))
    return found
