"""What the parts of a server share: its paths, its process, its settings in force and its sessions."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError, PostgresError
from holdfast.model.lsn import History, Position
from holdfast.model.settings import PostgresSettings
from holdfast.model.timeouts import Timeouts
from holdfast.postgres.account import run_as
from holdfast.postgres.anchor import Checkpoints
from holdfast.postgres.config import Configuration, Runtime, read_secret
from holdfast.postgres.control import LogReader, read_control
from holdfast.postgres.disk import Disk, DiskSilent
from holdfast.postgres.faults import LogMark, prune_logs
from holdfast.postgres.files import remove_durably, write_durably
from holdfast.postgres.guard import Guard
from holdfast.postgres.hearing import Hearing
from holdfast.postgres.installation import Installation
from holdfast.postgres.layout import Layout
from holdfast.postgres.process import PidFile, Postmaster, StopMode, kill_everything
from holdfast.postgres.session import Session
from holdfast.postgres.timelines import remove_histories_above, timelines_on_disk

_log = structlog.get_logger(__name__)
_POLL_S = 0.002
_STARTED = frozenset({"starting", "ready", "standby"})
_SETTINGS = "settings"
"""Whatever writes them is one purpose: a write that hung never ends after a later one."""
_RELOADED = """
SELECT extract(epoch FROM pg_conf_load_time())::text,
       current_setting('synchronous_standby_names'), current_setting('primary_conninfo') <> ''
"""


class Instance:
    """One server with its process and sessions. ``Server`` is its face."""

    def __init__(
        self, settings: PostgresSettings, node: str, installation: Installation, timeouts: Timeouts, state_dir: Path
    ) -> None:
        self.settings = settings
        self.node = node
        self.installation = installation
        self.timeouts = timeouts
        self.state_dir = state_dir
        self.user = run_as(settings.os_user)
        self.layout = Layout(settings.data_dir.resolve(), settings.socket_dir.absolute(), self.user)
        self.configuration = Configuration(settings, node, installation, self.layout)
        self.guard = Guard(self.layout.data_dir)
        self.exited = asyncio.Event()
        self.exited.set()
        self.postmaster: Postmaster | None = None
        self.runtime = Runtime()
        self.in_force = False
        """Whether the server is known to use ``runtime``."""
        self.end_known = False
        """Whether this postmaster's standby has once come to the end of its local log."""
        self.hearing = Hearing()
        self.heard_s: float | None = None
        """When the standby, detached since, last can have received log (seconds on the loop's clock)."""
        self.accepted = False
        """Whether this postmaster has ever accepted a session."""
        self.promoting_to: int | None = None
        self.log_mark: LogMark | None = None
        self.checkpoints = Checkpoints()
        self.disk = Disk()
        self.identifier = self.layout.system_identifier() if self.layout.complete() else None
        """The system identifier of a complete data directory, as of the last look at it."""
        self.own_history: tuple[int, History] | None = None
        """The timeline that this life of the server leads, with its history, which does not change any more."""
        self._sessions: dict[str, Session] = {}
        self._changing = asyncio.Lock()
        self._hba_unread = False
        """Whether this postmaster may not have read pg_hba.conf since it was changed."""
        self._prune_after = 0.0

    # -- the process -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether there is a postmaster that we know of."""
        return self.postmaster is not None and not self.exited.is_set()

    def running_postmaster(self) -> Postmaster:
        """The postmaster; raises PostgresError if there is none."""
        if self.postmaster is None or self.exited.is_set():
            raise PostgresError(f"the server in {self.layout.data_dir} does not run")
        return self.postmaster

    async def start(self, *, standby: bool) -> None:
        """Start the postmaster; see ``Server.start``."""
        if self.running:
            raise PostgresError(f"the server in {self.layout.data_dir} runs already (process {self.postmaster_pid})")
        await asyncio.to_thread(self._check_startable)
        await self.look_at_directory()
        await self.end_orphans()
        await self._drop_foreign_histories()
        runtime = Runtime()
        self.postmaster = await self.spawn(runtime, self.exited, standby=standby)
        self._new_life(runtime)
        await self._wait_until_it_exists()

    async def spawn(
        self, runtime: Runtime, exited: asyncio.Event, *, standby: bool, options: Sequence[str] = ()
    ) -> Postmaster:
        """Write the files and start a postmaster; raises EnvironmentFault or ConfigurationError."""
        try:
            prepare = partial(self._prepare_start, runtime, standby)
            await self.disk.call(_SETTINGS, prepare, self.timeouts.postmaster_ms)
        except OSError as error:
            raise EnvironmentFault(f"cannot prepare the start in {self.layout.data_dir}: {error}") from error
        return Postmaster.spawn(
            [self.installation.program("postgres"), "-D", str(self.layout.data_dir), *options],
            self.layout.startup_log,
            self.user,
            self.layout.data_dir,
            exited,
        )

    async def adopt(self) -> bool:
        """Pick up a running postmaster; see ``Server.adopt``."""
        if self.running:
            return True
        found = await asyncio.to_thread(PidFile.read, self.layout.data_dir)
        if found is None:
            return False
        self.postmaster = Postmaster.find(self.layout.data_dir, self.exited)
        if self.postmaster is None:
            return False
        self._new_life(await asyncio.to_thread(self.configuration.read_back))
        self.log_mark = await asyncio.to_thread(LogMark, self.layout)
        _log.info("adopted a running postmaster", pid=self.postmaster.pid, node=self.node)
        return True

    async def stop(self, mode: StopMode, deadline_ms: int, *, escalate: bool) -> None:
        """Stop the postmaster; see ``Server.stop``."""
        if self.running:
            ended = await self.running_postmaster().stop(mode, deadline_ms)
            if not ended and not escalate:
                raise PostgresError(f"PostgreSQL did not stop within {deadline_ms} ms ({mode} shutdown)")
        if mode == "fast" and self.exited.is_set() and self.postmaster is not None and self.postmaster.ended_well:
            await self.close_sessions()  # nothing is left to kill, and a search would take part of a switchover's stall
        else:
            await self.kill()

    async def kill(self) -> None:
        """End every process of the server."""
        await kill_everything(self.layout.data_dir, self.postmaster, self.timeouts.kill_ms, self.disk)
        await self.close_sessions()

    async def end_orphans(self) -> None:
        """End what a dead postmaster or rewind left behind; raises PostgresError if a postmaster is alive there."""
        found = Postmaster.find(self.layout.data_dir, asyncio.Event())
        if found is not None:
            found.release()
            raise PostgresError(
                f"a server runs in {self.layout.data_dir} (process {found.pid}): adopt or kill it first"
            )
        await kill_everything(self.layout.data_dir, None, self.timeouts.kill_ms, self.disk)
        if await asyncio.to_thread(self.salvage_dir.exists):  # its agent was killed while it read lost rows
            await kill_everything(self.salvage_dir / "data", None, self.timeouts.kill_ms, self.disk)
            await asyncio.to_thread(shutil.rmtree, self.salvage_dir, ignore_errors=True)

    @property
    def salvage_dir(self) -> Path:
        """Where the isolated copy is from which lost rows are read."""
        chosen = self.settings.salvage_dir
        return self.layout.side_dir / "salvage" if chosen is None else chosen / f"holdfast-salvage-{self.node}"

    @property
    def postmaster_pid(self) -> int | None:
        """The postmaster's process id, None if there is none."""
        return self.postmaster.pid if self.postmaster is not None and not self.exited.is_set() else None

    def why_it_ended(self) -> HoldfastError | None:
        """What the server complained of since its start, translated; None if it did not."""
        return self.log_mark.fault() if self.log_mark is not None else None

    # -- settings in force -------------------------------------------------------------------------------------------

    async def apply(self, runtime: Runtime) -> None:
        """Write the settings, reload, and wait until every new session uses them; raises PostgresError."""
        async with self._changing:
            postmaster = self.running_postmaster()
            session = self.session("work")
            deadline_ms = self.timeouts.reload_confirm_ms
            wanted = (runtime.synchronous_names, runtime.upstream is not None)
            before = None  # what is in force differs visibly from what is wanted, so that seeing that is enough
            if not self.in_force or (self.runtime.synchronous_names, self.runtime.upstream is not None) == wanted:
                before = (await session.fetch(_RELOADED, deadline_ms=deadline_ms))[0][0]
            self.runtime, self.in_force = runtime, False
            try:
                await self.disk.call(_SETTINGS, partial(self.configuration.write, runtime), self.timeouts.statement_ms)
            except OSError as error:
                raise PostgresError(f"cannot write PostgreSQL's settings: {error}") from error
            postmaster.signal(signal.SIGHUP)
            deadline = asyncio.get_running_loop().time() + deadline_ms / 1000
            while True:
                # The postmaster reads the files before it signals its children: what this session sees, new ones use.
                at, *found = (await session.fetch(_RELOADED, deadline_ms=deadline_ms))[0]
                if at != before and tuple(found) == wanted:
                    self.in_force = True
                    return
                if asyncio.get_running_loop().time() > deadline:
                    raise PostgresError(f"PostgreSQL did not take its new settings within {deadline_ms} ms")
                await asyncio.sleep(_POLL_S)

    async def reload_hba(self) -> None:
        """Bring ``pg_hba.conf`` alone to what it should say, until new sessions meet it; raises PostgresError."""
        async with self._changing:
            postmaster = self.running_postmaster()
            try:
                write = self.configuration.write_hba
                self._hba_unread |= await self.disk.call(_SETTINGS, write, self.timeouts.statement_ms)
            except OSError as error:
                raise PostgresError(f"cannot write pg_hba.conf: {error}") from error
            if not self._hba_unread:
                return
            session, deadline_ms = self.session("hba"), self.timeouts.reload_confirm_ms
            before = (await session.fetch(_RELOADED, deadline_ms=deadline_ms))[0][0]
            postmaster.signal(signal.SIGHUP)
            deadline = asyncio.get_running_loop().time() + deadline_ms / 1000
            # The postmaster takes in the next session only when it is done with all of the reload.
            while (await session.fetch(_RELOADED, deadline_ms=deadline_ms))[0][0] == before:
                if asyncio.get_running_loop().time() > deadline:
                    raise PostgresError(f"PostgreSQL did not read its pg_hba.conf within {deadline_ms} ms")
                await asyncio.sleep(_POLL_S)
            self._hba_unread = False

    async def change(self, **fields: object) -> None:
        """``apply`` with some fields of the settings in force changed."""
        await self.apply(replace(self.runtime, **fields))  # type: ignore[arg-type]

    # -- sessions ----------------------------------------------------------------------------------------------------

    def session(self, purpose: str, synchronous_commit: Literal["local", "on"] = "local") -> Session:
        """The held session for a purpose; a statement that hangs holds up only its own purpose."""
        if purpose not in self._sessions:
            self._sessions[purpose] = self.new_session(synchronous_commit)
        return self._sessions[purpose]

    def new_session(
        self, synchronous_commit: Literal["local", "on"] = "local", *, database: str = "postgres"
    ) -> Session:
        """A session of its own; the caller closes it."""
        password = read_secret(self.settings.superuser_password_file, "postgres.superuser_password_file")
        return Session(
            self.layout.socket_dir,
            self.settings.port,
            password,
            self.timeouts.statement_ms,
            synchronous_commit,
            database,
        )

    async def prune_logs_sometimes(self) -> None:
        """Remove old server logs, at most once in an interval."""
        now = asyncio.get_running_loop().time()
        if now >= self._prune_after:
            self._prune_after = now + self.timeouts.log_prune_interval_ms / 1000
            with contextlib.suppress(DiskSilent, OSError):
                await self.disk.call("logs", partial(prune_logs, self.layout), self.timeouts.statement_ms)

    async def look_at_directory(self) -> bool:
        """Whether there is a complete data directory; while its file system is silent, what was seen last."""
        with contextlib.suppress(DiskSilent):
            self.identifier = await self.disk.call("directory", self._identify, self.timeouts.statement_ms)
        return self.identifier is not None

    def _identify(self) -> str | None:
        return self.layout.system_identifier() if self.layout.complete() else None

    async def close_sessions(self) -> None:
        """Close the held sessions."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def close(self) -> None:
        """Let go of the process and the sessions; the server runs on."""
        await self.close_sessions()
        if self.postmaster is not None:
            self.postmaster.release()

    # -- the stopped directory ---------------------------------------------------------------------------------------

    async def end_of_log(self) -> Position:
        """Where the log of the stopped directory ends."""
        self.require_stopped()
        return await LogReader(self.installation, self.layout.data_dir, self.user).end()

    def require_stopped(self) -> None:
        """Raises PostgresError unless there is a complete data directory that nobody runs."""
        if self.running:
            raise PostgresError(f"the server in {self.layout.data_dir} runs: stop it first")
        if not self.layout.complete():
            raise PostgresError(f"{self.layout.data_dir} holds no complete data directory")

    def _check_startable(self) -> None:
        if not self.layout.complete():
            raise PostgresError(f"{self.layout.data_dir} holds no complete data directory: initialize or clone it")
        major = self.layout.major_version()
        if major != self.installation.major:
            raise ConfigurationError(
                f"postgres.data_dir = {str(self.layout.data_dir)!r} was made by PostgreSQL {major}, and "
                f"postgres.bin_dir is {self.installation}: use the programs of version {major}"
            )
        other = PidFile.read(self.layout.data_dir)
        if other is not None and Path(f"/proc/{other.pid}").exists() and other.pid != self.postmaster_pid:
            _log.warning("a pid file names a process that lives", pid=other.pid, node=self.node)

    async def _drop_foreign_histories(self) -> None:
        """Remove what names timelines that this log does not have: placeholders, and an abandoned promotion's file.

        A start would aim at the newest of them. A timeline that the log does reach keeps its file and those below it,
        or the start would stop short of log that was acknowledged.
        """
        wal_dir = self.layout.wal_dir
        there = await asyncio.to_thread(timelines_on_disk, wal_dir)
        if not there:
            return
        control = await read_control(self.installation, self.layout.data_dir, self.user)
        if there[-1] <= control.newest_timeline:
            return
        end = await LogReader(self.installation, self.layout.data_dir, self.user).end()
        newest = max(end.timeline, control.newest_timeline)
        removed = await asyncio.to_thread(remove_histories_above, wal_dir, newest)
        if removed:
            _log.info("removed history files above the log's end", timelines=removed, end=str(end.lsn), node=self.node)

    def _prepare_start(self, runtime: Runtime, standby: bool) -> None:
        self.layout.prepare()
        prune_logs(self.layout)
        write_durably(self.layout.startup_log, b"", self.user)
        data_dir = self.layout.data_dir
        remove_durably(data_dir / "recovery.signal")
        if standby:
            write_durably(data_dir / "standby.signal", b"", self.user)
        else:
            remove_durably(data_dir / "standby.signal")
        self.configuration.write(runtime)
        self._check_port()
        self.log_mark = LogMark(self.layout)

    def _check_port(self) -> None:
        host, port = self.settings.host, self.settings.port
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot listen on postgres.host = {host!r}, postgres.port = {port}: {error.strerror}; "
                "choose another port or address, or end the process that has it"
            ) from error

    def _new_life(self, runtime: Runtime) -> None:
        self.runtime, self.in_force = runtime, True
        self.end_known = False
        self.accepted = False
        self.promoting_to = None
        self.own_history = None
        self._hba_unread = False

    async def _wait_until_it_exists(self) -> None:
        """Until its sockets are open, so that a port or directory that it cannot have is told at once."""
        postmaster = self.postmaster
        assert postmaster is not None
        deadline = asyncio.get_running_loop().time() + self.timeouts.postmaster_ms / 1000
        while asyncio.get_running_loop().time() < deadline:
            if not postmaster.alive():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.exited.wait(), 5)
                fault = await asyncio.to_thread(self.why_it_ended)
                raise fault or PostgresError(f"PostgreSQL ended right after its start; see {self.layout.startup_log}")
            recorded = await asyncio.to_thread(PidFile.read, self.layout.data_dir)
            if recorded is not None and recorded.pid == postmaster.pid and recorded.status in _STARTED:
                return
            await asyncio.sleep(_POLL_S)
        _log.warning("postmaster takes long to open its sockets", pid=postmaster.pid, node=self.node)
