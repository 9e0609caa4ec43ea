"""Where the log of a cleanly stopped primary ends, read from its files without a program: a switchover waits for it.

The control file names the shutdown checkpoint, and nothing is written after it. What is read is believed only if the
record itself is there, says the same and has its checksum, and if no record follows it (a start that is killed at once
may leave one before the control file says that it started); else the caller asks ``pg_waldump``.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from holdfast.model.lsn import Lsn
from holdfast.postgres.timelines import segment_name

_PAGE_BYTES = 8192
_SHUT_DOWN = 1
"""``DB_SHUTDOWNED`` (catalog/pg_control.h): a primary that was stopped; a standby has a state of its own."""
_CONTROL = struct.Struct("=QIIi4xqQQI")
"""The beginning of ``ControlFileData``, the same since PostgreSQL 11: system identifier, versions of the control file
and the catalog, state, time, checkpoint, and of its copy the redo location and the timeline."""
_RECORD_HEADER = struct.Struct("=IIQBB2xI")
"""``XLogRecord`` (access/xlogrecord.h): length, xid, previous, info, resource manager, CRC."""
_CRC_OFFSET = 20
_MAIN_DATA = struct.Struct("=BBQI")
"""``XLR_BLOCK_ID_DATA_SHORT``, length, and the beginning of ``CheckPoint``: redo location, timeline."""
_DATA_SHORT = 255
_XLOG_MANAGER, _CHECKPOINT_SHUTDOWN, _INFO_MASK = 0, 0x00, 0xF0
_SEGMENT_NAME_LENGTH = 24
_SEGMENT_BYTES_LEAST = 1 << 20


@dataclass(frozen=True, slots=True)
class CleanEnd:
    """The end of the log: its timeline, where the shutdown checkpoint begins and the first byte after it."""

    timeline: int
    checkpoint: Lsn
    end: Lsn
    segment_bytes: int


def clean_end(data_dir: Path) -> CleanEnd | None:
    """Where the log ends, if the server was a primary and was stopped cleanly; None if that is not certain."""
    try:
        raw = (data_dir / "global" / "pg_control").read_bytes()
        if len(raw) < _CONTROL.size:
            return None
        _, _, _, state, _, checkpoint, redo, timeline = _CONTROL.unpack_from(raw)
        if state != _SHUT_DOWN or redo != checkpoint:
            return None
        segment_bytes = _segment_bytes(data_dir / "pg_wal")
        if segment_bytes is None:
            return None
        page = _rest_of_page(data_dir / "pg_wal", timeline, checkpoint, segment_bytes)
    except OSError:
        return None
    length = _checkpoint_length(page, checkpoint, timeline)
    if length is None or _may_go_on(page[length:], checkpoint):
        return None
    return CleanEnd(timeline, Lsn(checkpoint), Lsn(checkpoint + length), segment_bytes)


def _segment_bytes(wal_dir: Path) -> int | None:
    """The size of the segments, which all have the same."""
    for path in wal_dir.iterdir():
        if len(path.name) == _SEGMENT_NAME_LENGTH and path.is_file():
            size = path.stat().st_size
            return size if size >= _SEGMENT_BYTES_LEAST and size & (size - 1) == 0 else None
    return None


def _rest_of_page(wal_dir: Path, timeline: int, at: int, segment_bytes: int) -> bytes:
    with (wal_dir / segment_name(timeline, Lsn(at), segment_bytes)).open("rb") as segment:
        if os.fstat(segment.fileno()).st_size != segment_bytes:
            return b""  # a file that was cut
        segment.seek(at % segment_bytes)
        return segment.read(_PAGE_BYTES - at % _PAGE_BYTES)


def _checkpoint_length(page: bytes, checkpoint: int, timeline: int) -> int | None:
    """What the shutdown checkpoint at the beginning of ``page`` takes up; None if it is not a whole and sound one."""
    if len(page) < _RECORD_HEADER.size + _MAIN_DATA.size:
        return None
    length, _, _, info, manager, crc = _RECORD_HEADER.unpack_from(page)
    if manager != _XLOG_MANAGER or info & _INFO_MASK != _CHECKPOINT_SHUTDOWN:
        return None
    if not _RECORD_HEADER.size + _MAIN_DATA.size <= length <= len(page):
        return None  # it goes on on the next page
    if _MAIN_DATA.unpack_from(page, _RECORD_HEADER.size) != (
        _DATA_SHORT,
        length - _RECORD_HEADER.size - 2,
        checkpoint,
        timeline,
    ):
        return None
    found = _crc32c(page[_RECORD_HEADER.size : length] + page[:_CRC_OFFSET])
    return (length + 7) & ~7 if found == crc else None


def _may_go_on(rest: bytes, checkpoint: int) -> bool:
    """Whether a record may follow: it would name the checkpoint as the one before it. What is too short cannot tell."""
    return len(rest) < _RECORD_HEADER.size or _RECORD_HEADER.unpack_from(rest)[2] == checkpoint


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def _crc32c(data: bytes) -> int:
    """CRC-32C, as PostgreSQL has it for its log (port/pg_crc32c.h)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
