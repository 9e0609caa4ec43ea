"""The isolated copy: a standby of a stopped data directory that nobody else reaches, shown the log bit by bit.

It has no upstream, restores nothing, archives nothing, listens on no network, and its directory is thrown away: what it
does to its own files matters to nobody. Its ``pg_wal`` holds the log up to the position that was asked for, and nothing
behind it, so that replay waits there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from holdfast.model.errors import EnvironmentFault, PostgresError
from holdfast.model.lsn import Lsn
from holdfast.postgres.config import SOCKET_PATH_BYTES_MAX
from holdfast.postgres.files import make_directory
from holdfast.postgres.instance import Instance
from holdfast.postgres.layout import free_bytes
from holdfast.postgres.process import Postmaster, kill_everything
from holdfast.postgres.salvage.trees import can_share_blocks, copy_tree, on_thread
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_left_in, shared_memory_of
from holdfast.postgres.timelines import history_name, is_placeholder, segment_name, timelines_on_disk

ROOM_LEFT_BYTES = 256 * 1024 * 1024
"""What a copy must leave on its file system: the node wants to come back."""
_LEFT_OUT = frozenset(
    {"pg_wal", "pg_replslot", "pg_stat_tmp", "postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal"}
)
_POLL_S = 0.005
SESSION = (
    "-c datestyle=ISO,MDY -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=1 -c bytea_output=hex "
    "-c search_path= -c lc_monetary=C -c statement_timeout=0 -c lock_timeout=0 -c jit=off"
)
"""As in the head of the script: what is printed here is read there."""

_ISOLATED = {
    "listen_addresses": "", "unix_socket_permissions": "0700", "ssl": "off", "cluster_name": "holdfast_salvage",
    "logging_collector": "off", "log_destination": "stderr", "log_min_messages": "fatal", "archive_mode": "off",
    "restore_command": "", "archive_cleanup_command": "", "recovery_end_command": "", "primary_conninfo": "",
    "primary_slot_name": "", "recovery_min_apply_delay": "0", "hot_standby": "on", "max_standby_archive_delay": "-1",
    "max_standby_streaming_delay": "-1", "wal_retrieve_retry_interval": "5", "synchronous_standby_names": "",
    "autovacuum": "off", "fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "huge_pages": "off",
    "session_preload_libraries": "", "local_preload_libraries": "", "restart_after_crash": "off",
}  # fmt: skip

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class IsolatedCopy:
    """Use: `make`, `start`, then `show` again and again with `connect` in between; and always `close`."""

    def __init__(self, instance: Instance, timeline: int, segment_bytes: int) -> None:
        self._instance = instance
        self._timeline = timeline
        self._segment_bytes = segment_bytes
        self._place = instance.salvage_dir
        self._data_dir = self._place / "data"
        self._socket_dir = instance.layout.socket_dir / "salvage"
        self._postmaster: Postmaster | None = None
        self._sessions: dict[str, Connection] = {}
        self._shown = Lsn(0)

    async def make(self, redo: Lsn, limit: Lsn) -> None:
        """Copy the directory, and the log from ``redo`` up to ``limit``; raises EnvironmentFault, OSError."""
        socket = self._socket_dir / f".s.PGSQL.{self._instance.settings.port}"
        if len(str(socket).encode()) > SOCKET_PATH_BYTES_MAX:
            raise EnvironmentFault(
                f"the socket of the copy, {socket}, has too long a path: set postgres.socket_dir to a shorter one"
            )
        await self.close()
        await on_thread(self._prepare)
        await on_thread(self._require_room)
        source = self._instance.layout.data_dir
        await copy_tree(source, self._data_dir, _LEFT_OUT)
        for link in (self._data_dir / "pg_tblspc").iterdir():
            space = self._place / f"tablespace-{link.name}"
            await on_thread(make_directory, space, self._instance.user)
            await copy_tree(link.resolve(), space)
            link.unlink()
            link.symlink_to(space)
        self._shown = Lsn(redo - redo % self._segment_bytes)
        await on_thread(self._write_log, limit)

    async def start(self) -> None:
        """Start it, and wait until it has replayed what it was shown; raises PostgresError, EnvironmentFault."""
        options = [part for name, value in self._settings().items() for part in ("-c", f"{name}={value}")]
        self._postmaster = Postmaster.spawn(
            [self._instance.installation.program("postgres"), "-D", str(self._data_dir), *options],
            self._place / "startup.log",
            self._instance.user,
            self._data_dir,
            asyncio.Event(),
        )
        while True:
            try:
                await self.connect("postgres")
                return
            except psycopg.OperationalError as error:
                self._require_alive(error)
            await asyncio.sleep(_POLL_S)

    async def show(self, limit: Lsn, beyond: Lsn) -> None:
        """Let it replay up to ``limit``, and wait until it is ``beyond`` a position; raises PostgresError, OSError."""
        await on_thread(self._write_log, limit)
        session = await self.connect("postgres")
        while True:
            try:
                cursor = await session.execute("SELECT pg_last_wal_replay_lsn()::text")
                row = await cursor.fetchone()
            except psycopg.OperationalError as error:
                self._require_alive(error)
                raise PostgresError(f"the copy for the salvage does not answer: {error}") from error
            if row is not None and row[0] is not None and Lsn.parse(row[0]) > beyond:
                return
            await asyncio.sleep(_POLL_S)

    async def connect(self, database: str) -> Connection:
        """The session on a database, which prints values the way that a script can read them back."""
        session = self._sessions.get(database)
        if session is None or session.closed:
            conninfo = make_conninfo(
                "", host=str(self._socket_dir), port=self._instance.settings.port, user="postgres", dbname=database,
                application_name="holdfast_salvage", options=SESSION, client_encoding="UTF8", gssencmode="disable",
            )  # fmt: skip
            session = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
            self._sessions[database] = session
        return session

    async def promote(self) -> None:
        """End its recovery; from now on it is a server like any other. Raises PostgresError."""
        session = await self.connect("postgres")
        row = await (await session.execute("SELECT pg_promote(true, 60)")).fetchone()
        if row != (True,):
            raise PostgresError("the copy for the salvage could not be promoted")

    async def close(self) -> None:
        """End it and remove its directory."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()
        postmaster = self._postmaster
        pids = [] if postmaster is None else [postmaster.pid, *(child.pid for child in postmaster.children())]
        shared = shared_memory_of(*pids) | shared_memory_left_in(self._data_dir)
        await kill_everything(self._data_dir, postmaster, self._instance.timeouts.kill_ms, self._instance.disk)
        self._postmaster = None
        remove_shared_memory(shared)
        for directory in (self._place, self._socket_dir):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        user, wal_dir, source = self._instance.user, self._data_dir / "pg_wal", self._instance.layout.wal_dir
        self._instance.layout.prepare()
        for directory in (self._place, self._data_dir, wal_dir, self._socket_dir):
            make_directory(directory, user)
        for emptied in ("pg_replslot", "pg_stat_tmp"):
            make_directory(self._data_dir / emptied, user)
        for timeline in timelines_on_disk(source):
            if timeline <= self._timeline and not is_placeholder(source, timeline):
                self._give(wal_dir / history_name(timeline), (source / history_name(timeline)).read_bytes())
        self._give(self._data_dir / "standby.signal", b"")
        self._give(self._place / "hba.conf", b"local all postgres trust\n")

    def _give(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self._own(path)

    def _own(self, path: Path) -> None:
        path.chmod(0o600)
        if self._instance.user is not None:
            os.chown(path, self._instance.user.uid, self._instance.user.gid)

    def _require_room(self) -> None:
        if can_share_blocks(self._instance.layout.data_dir / "PG_VERSION", self._place / "probe"):
            return
        needed, free = _size_bytes(self._instance.layout.data_dir) + ROOM_LEFT_BYTES, free_bytes(self._place)
        if needed > free:
            raise EnvironmentFault(
                f"no room for a copy of the data directory at {self._place}: {needed:,} bytes are needed, and {free:,} "
                "are free; set postgres.salvage_dir to a file system with room"
            )

    def _write_log(self, limit: Lsn) -> None:
        """Give the copy the bytes of the log from where it was shown up to ``limit``; zeros follow."""
        source = self._instance.layout.wal_dir
        while self._shown < limit:
            timeline, name = self._segment_at(source, self._shown)
            path = self._data_dir / "pg_wal" / name
            offset = self._shown % self._segment_bytes
            size = min(int(limit - self._shown), self._segment_bytes - offset)
            with (source / segment_name(timeline, self._shown, self._segment_bytes)).open("rb") as file:
                file.seek(offset)
                content = file.read(size)
            if not path.exists():
                self._make_segment(path)
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "wb") as file:
                file.seek(offset)
                file.write(content)
            self._shown = Lsn(self._shown + size)

    def _make_segment(self, path: Path) -> None:
        """Zeros, in their place only when they are the server's own: it looks there, and ends if it may not read."""
        made = self._place / path.name
        with made.open("xb") as file:
            file.truncate(self._segment_bytes)
        self._own(made)
        made.rename(path)

    def _segment_at(self, source: Path, at: Lsn) -> tuple[int, str]:
        """The newest timeline, up to our own, that has the segment."""
        for timeline in range(self._timeline, 0, -1):
            name = segment_name(timeline, at, self._segment_bytes)
            if (source / name).exists():
                return timeline, name
        raise PostgresError(f"the log at {at} is missing in {source}")

    def _settings(self) -> dict[str, str]:
        settings = {
            **_ISOLATED,
            "unix_socket_directories": str(self._socket_dir),
            "port": str(self._instance.settings.port),
            "hba_file": str(self._place / "hba.conf"),
            "recovery_target_timeline": str(self._timeline),
        }
        if self._instance.installation.major >= 15:
            settings["recovery_prefetch"] = "off"
        return settings

    def _require_alive(self, error: Exception) -> None:
        if self._postmaster is None or self._postmaster.alive():
            return
        with contextlib.suppress(OSError):
            lines = (self._place / "startup.log").read_text(errors="replace").strip().splitlines()
            if lines:
                raise PostgresError(f"the copy for the salvage does not run: {lines[-1]}") from error
        raise PostgresError("the copy for the salvage does not run, and does not say why") from error


def _size_bytes(directory: Path) -> int:
    """What a copy takes: without the log, with tablespaces."""
    total = 0
    pending = [directory]
    while pending:
        for entry in os.scandir(pending.pop()):
            is_space = entry.is_symlink() and Path(entry.path).parent.name == "pg_tblspc"
            if entry.name == "pg_wal":
                continue
            if entry.is_dir(follow_symlinks=is_space):
                pending.append(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
