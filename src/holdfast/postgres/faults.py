"""Why a server did not start or went away: its last words, told in the terms of our settings."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError, PostgresError
from holdfast.postgres.layout import Layout

_READ_BYTES_MAX = 256 * 1024
_KEPT_LOGS = 10
_TAIL_BYTES = 32 * 1024
_LOUD = re.compile(r"\b(FATAL|PANIC|ERROR):\s+(.*)")
_OF_ITS_OWN = re.compile(r"\] (?:FATAL|PANIC):\s+(.*)").search
"""log_line_prefix names user and database of a client's session before that."""

_KNOWN: tuple[tuple[re.Pattern[str], type[HoldfastError], str], ...] = (
    (
        re.compile(r"No space left on device|Disk quota exceeded"),
        EnvironmentFault,
        "the disk below postgres.data_dir is full: free some space",
    ),
    (
        re.compile(r"could not (bind|create any TCP/IP sockets)|Address already in use|could not create listen socket"),
        EnvironmentFault,
        "postgres.host and postgres.port cannot be listened on: another process has the port, or the address is not "
        "this machine's; choose another port or end that process",
    ),
    (
        re.compile(r"could not create (lock file|Unix-domain socket)|could not set permissions of file \".*\.s\.PGSQL"),
        EnvironmentFault,
        "postgres.socket_dir cannot be used: it must exist and be writable by the server's user",
    ),
    (
        re.compile(r"database files are incompatible with server|initialized by PostgreSQL version"),
        ConfigurationError,
        "the data directory was made by another major version: point postgres.bin_dir at that version",
    ),
    (
        re.compile(r"data directory \".*\" has (wrong ownership|invalid permissions)"),
        EnvironmentFault,
        "postgres.data_dir must belong to the server's user (postgres.os_user) and be closed to others",
    ),
    (
        re.compile(r"Permission denied"),
        EnvironmentFault,
        "the server's user (postgres.os_user) lacks a right to postgres.data_dir or a directory above it",
    ),
    (
        re.compile(r"could not (create|map|resize).*shared memory|out of memory|Cannot allocate memory"),
        EnvironmentFault,
        "the machine has too little memory: lower shared_buffers or max_connections in postgres.parameters",
    ),
    (
        re.compile(r"unrecognized configuration parameter|invalid value for parameter|configuration file .* contains"),
        ConfigurationError,
        "PostgreSQL does not accept a setting: correct postgres.parameters",
    ),
    (
        re.compile(r"could not access file \".*\": No such file|could not load library"),
        ConfigurationError,
        "a library that postgres.parameters names is not installed",
    ),
    (
        re.compile(r"could not load pg_hba\.conf|could not load .*hba"),
        ConfigurationError,
        "PostgreSQL does not accept a line of postgres.hba: correct it",
    ),
    (
        re.compile(r"recovery aborted because of insufficient parameter settings"),
        ConfigurationError,
        "a setting in postgres.parameters is lower here than on the primary: make them equal",
    ),
)


class LogMark:
    """Remembers how long the logs were, so that only what came later is read."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sizes = {path: _size(path) for path in _logs(layout)}

    def text(self) -> str:
        """What has been logged since."""
        parts = []
        for path in _logs(self._layout):
            try:
                with path.open("rb") as stream:
                    start = self._sizes.get(path, 0)
                    stream.seek(max(start, _size(path) - _READ_BYTES_MAX))
                    parts.append(stream.read(_READ_BYTES_MAX).decode(errors="replace"))
            except OSError:
                continue
        return "\n".join(parts)

    def fault(self) -> HoldfastError | None:
        """What the server died of, if it said so."""
        return explain(self.text())


def last_complaint(layout: Layout, within_s: float) -> tuple[str, Path] | None:
    """What the server itself, no client's session, last gave up over, and in which log, if that was just now."""
    newest = max(_logs(layout), key=_modified_at, default=None)
    if newest is None or time.time() - _modified_at(newest) > within_s:
        return None
    with contextlib.suppress(OSError), newest.open("rb") as stream:
        stream.seek(max(0, _size(newest) - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
        found = [match[1].strip() for match in map(_OF_ITS_OWN, lines) if match]
        if found:
            return found[-1], newest
    return None


def explain(text: str) -> HoldfastError | None:
    """The error that a log tells of; None if it tells of none."""
    complaints = [match[2].strip() for match in map(_LOUD.search, text.splitlines()) if match]
    for pattern, kind, advice in _KNOWN:
        for line in text.splitlines():
            if pattern.search(line):
                return kind(f"PostgreSQL: {_without_prefix(line)}. {advice[0].upper()}{advice[1:]}")
    if complaints:
        return PostgresError(f"PostgreSQL: {complaints[-1]}")
    return None


def prune_logs(layout: Layout) -> None:
    """Keep only the newest server logs, so that they are bounded in size."""
    for path in sorted(layout.log_dir.glob("postgresql-*.log"))[:-_KEPT_LOGS]:
        path.unlink(missing_ok=True)


def _logs(layout: Layout) -> list[Path]:
    return [layout.startup_log, *sorted(layout.log_dir.glob("postgresql-*.log"))[-2:]]


def _modified_at(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _without_prefix(line: str) -> str:
    match = re.search(r"\b(?:FATAL|PANIC|ERROR|LOG|WARNING|HINT|DETAIL):\s+(.*)", line)
    return (match[1] if match else line).strip().rstrip(".")
