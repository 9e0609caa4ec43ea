"""What there is to take of a stopped data directory, and what each file is worth."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.core.capture import Candidate
from holdfast.model.capture import Kind
from holdfast.model.lsn import Lsn
from holdfast.model.settings import CaptureSettings
from holdfast.postgres.layout import Layout
from holdfast.postgres.timelines import segment_name

_CONTROL = (
    "global/pg_control", "PG_VERSION", "postmaster.opts", "postmaster.pid", "backup_label", "tablespace_map",
    "standby.signal", "recovery.signal", "holdfast.incarnation", "current_logfiles",
)  # fmt: skip
_STATE = ("pg_twophase", "pg_replslot", "pg_stat", "pg_xact", "pg_multixact", "pg_commit_ts", "pg_logical")
_DATA = ("global", "base", "pg_tblspc")
_SEGMENT = re.compile(r"\A[0-9A-F]{24}(\.partial)?\Z")
_PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_PRIVATE_SUFFIXES = (".key", ".pem", ".p12", ".pfx", ".pass")
_LOOKED_AT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate, and where it is. ``redact``: passwords are taken out of it."""

    candidate: Candidate
    source: Path | bytes
    redact: bool = False


@dataclass(frozen=True, slots=True)
class LogRange:
    """Which of the write-ahead log is divergent: from ``fork`` to ``end``; None: nothing, or nobody knows."""

    timeline: int
    end: Lsn
    fork: Lsn | None
    segment_bytes: int


def collect(layout: Layout, settings: CaptureSettings, log: LogRange | None) -> Iterator[Found]:
    """Everything of the node but the volatile; what cannot be looked at is named as well, and fails when taken."""
    yield from _named(layout.data_dir, _CONTROL, Kind.CONTROL)
    yield from _configuration(layout.data_dir, redact=not settings.secrets)
    yield from _write_ahead_log(layout.wal_dir, settings, log)
    yield from _server_logs(layout)
    for name in _STATE:
        yield from _tree(layout.data_dir / name, f"data/{name}", Kind.STATE)
    if settings.data_files:
        for name in _DATA:
            yield from _tree(layout.data_dir / name, f"data/{name}", Kind.DATA)
    else:
        yield Found(Candidate("data/base", Kind.DATA, 0, asked=False), b"")


def _named(data_dir: Path, names: tuple[str, ...], kind: Kind) -> Iterator[Found]:
    for place, name in enumerate(names):
        size_bytes = _size(data_dir / name)
        if size_bytes is not None:
            yield Found(Candidate(f"data/{name}", kind, size_bytes, place), data_dir / name)


def _configuration(data_dir: Path, *, redact: bool) -> Iterator[Found]:
    """Files at the top: configuration is taken, a key never, whatever it is called."""
    for path in sorted(_entries(data_dir)):
        size_bytes = _size(path)
        if size_bytes is None or path.name in _CONTROL:
            continue
        path_in = f"data/{path.name}"
        if _may_hold_a_key(path):
            yield Found(Candidate(path_in, Kind.CONFIGURATION, size_bytes, secret=True), path)
        elif path.suffix == ".conf":
            yield Found(Candidate(path_in, Kind.CONFIGURATION, size_bytes), path, redact)
        elif path.suffix in (".crt", ".crl"):
            yield Found(Candidate(path_in, Kind.CONFIGURATION, size_bytes), path)


def _may_hold_a_key(path: Path) -> bool:
    if path.suffix in _PRIVATE_SUFFIXES or path.name.startswith(".pgpass"):
        return True
    if path.suffix == ".conf":
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _PRIVATE.search(file.read(_LOOKED_AT_BYTES)) is not None
    return True


def _write_ahead_log(wal_dir: Path, settings: CaptureSettings, log: LogRange | None) -> Iterator[Found]:
    for path in sorted(_entries(wal_dir)):
        if path.suffix == ".history":
            yield Found(Candidate(f"data/pg_wal/{path.name}", Kind.HISTORY, _size(path) or 0), path)
    segments = [p for p in sorted(_entries(wal_dir)) if _SEGMENT.match(p.name)]
    last = None if log is None else segment_name(log.timeline, Lsn(max(0, log.end - 1)), log.segment_bytes)
    first = None if log is None or log.fork is None else segment_name(log.timeline, log.fork, log.segment_bytes)
    # Segments beyond the end are made ahead, or are old ones with a new name: nothing is in them.
    written = [p for p in segments if last is None or p.name[:24] <= last]
    divergent = [] if first is None else [p for p in written if p.name >= first]
    for place, path in enumerate(divergent):
        size_bytes = _size(path) or 0
        yield Found(Candidate(f"data/pg_wal/{path.name}", Kind.DIVERGENT_LOG, size_bytes, place), path)
    wanted_bytes = settings.log_before_bytes
    earlier = [p for p in written if p not in set(divergent)]
    for place, path in enumerate(reversed(earlier)):
        size_bytes = _size(path) or 0
        wanted_bytes -= size_bytes
        asked = wanted_bytes >= 0
        yield Found(Candidate(f"data/pg_wal/{path.name}", Kind.EARLIER_LOG, size_bytes, place, asked), path)


def _server_logs(layout: Layout) -> Iterator[Found]:
    logs = [p for p in _entries(layout.log_dir) if p.suffix in (".log", ".csv", ".json")]
    dated = sorted(((_modified(p), p) for p in (layout.startup_log, *logs)), reverse=True)
    for place, (_, path) in enumerate(dated):
        size_bytes = _size(path)
        if size_bytes:
            yield Found(Candidate(f"server-log/{path.name}", Kind.SERVER_LOG, size_bytes, place), path)


def _tree(top: Path, name: str, kind: Kind) -> Iterator[Found]:
    """All files below a directory; links are followed where PostgreSQL follows them, to tablespaces."""
    pending = [(top, name)]
    while pending:
        here, path_in = pending.pop()
        for path in sorted(_entries(here)):
            inside = f"{path_in}/{path.name}"
            try:
                found = path.stat() if here.name == "pg_tblspc" else path.lstat()
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode):
                pending.append((path, inside))
            elif stat.S_ISREG(found.st_mode) and inside.removeprefix("data/") not in _CONTROL:
                yield Found(Candidate(inside, kind, found.st_size), path)


def _entries(directory: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(directory)]
    except OSError:
        return []


def _size(path: Path) -> int | None:
    """The size of a file; None for what is none, or is not there."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
