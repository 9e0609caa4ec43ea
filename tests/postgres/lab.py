"""A small laboratory of real servers in a directory of its own; what it started is gone when it closes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from holdfast.model.register import NO_QUORUM, Member, Quorum
from holdfast.model.server import ServerStatus, ServerView, Upstream
from holdfast.model.settings import PostgresSettings
from holdfast.model.timeouts import Timeouts
from holdfast.postgres.installation import Installation
from holdfast.postgres.process import processes_in
from holdfast.postgres.server import Server
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_left_in, shared_memory_of
from tests.ports import free_port

PASSWORD = "correct horse 'battery"
DEADLINE_S = 60
PARAMETERS = {"shared_buffers": "16MB", "wal_init_zero": "off", "wal_recycle": "off"}
_incarnations = itertools.count(1)


def new_incarnation() -> str:
    return f"{next(_incarnations):08x}"


def nothing(step: str, fraction: float | None) -> None:
    """For whom progress does not matter."""


class Lab:
    """Servers of one version below one directory that the unprivileged user can search."""

    def __init__(self, installation: Installation, template: Path | None = None) -> None:
        self.installation = installation
        self.root = Path(tempfile.mkdtemp(prefix="holdfast-"))
        self.root.chmod(0o711)
        self._template = template
        self._secret = self.root / "secret"
        self._secret.write_text(PASSWORD)
        self._secret.chmod(0o600)
        self.settings: dict[str, PostgresSettings] = {}
        self.servers: list[Server] = []
        self._connections: list[psycopg.AsyncConnection[tuple[Any, ...]]] = []

    def settings_of(self, node: str, **more: Any) -> PostgresSettings:
        if node not in self.settings or more:
            defaults = {
                "data_dir": self.root / node / "data",
                "port": self.settings[node].port if node in self.settings else free_port(),
                "socket_dir": self.root / node / "run",
                "superuser_password_file": self._secret,
                "replication_password_file": self._secret,
                "parameters": PARAMETERS,
            }
            self.settings[node] = PostgresSettings(**{**defaults, **more})
        return self.settings[node]

    def server(self, node: str, timeouts: Timeouts | None = None, **more: Any) -> Server:
        settings = self.settings_of(node, **more)
        server = Server(settings, node, self.installation, timeouts or Timeouts(), self.root / node / "state")
        self.servers.append(server)
        return server

    def upstream(self, node: str) -> Upstream:
        settings = self.settings_of(node)
        return Upstream(node, settings.host, settings.port)

    def data_dir(self, node: str) -> Path:
        return self.settings_of(node).data_dir

    async def primary(self, node: str = "a", quorum: Quorum | None = NO_QUORUM, **more: Any) -> Server:
        """A running primary of epoch 1."""
        server = self.server(node, **more)
        await self.make(node, server)
        await server.set_incarnation(new_incarnation())
        await server.start(standby=False)
        await self.until(server, lambda view: view.status is ServerStatus.PRIMARY)
        await server.set_quorum(quorum)
        await server.write_epoch_record(1)
        return server

    async def standby(self, node: str, of: str = "a", **more: Any) -> tuple[Server, Member]:
        """A standby that streams from ``of``. Any copy of the template can: the primary still has all its log."""
        server = self.server(node, **more)
        member = Member(node, new_incarnation())
        if self._template is None:
            await server.clone(self.upstream(of), member, nothing)
        else:
            await self.make(node, server)
            await server.set_incarnation(member.incarnation)
        await self.join(server, of, member)
        return server, member

    async def make(self, node: str, server: Server) -> None:
        """A stopped data directory: a copy of the template if there is one."""
        if self._template is None:
            await server.initialize()
            return
        target = self.data_dir(node)
        target.parent.mkdir(mode=0o711)
        copy = ["cp", "-a", "--reflink=auto", str(self._template), str(target)]
        await asyncio.to_thread(subprocess.run, copy, check=True)

    async def join(self, server: Server, of: str, member: Member, way: Upstream | None = None) -> None:
        """Start a stopped server as a standby of ``of`` and wait until it streams."""
        await server.start(standby=True)
        await self.until(server, lambda view: view.status is ServerStatus.STANDBY)
        await self.make_slots(of)
        await server.follow(way or self.upstream(of), member)
        await self.until(server, lambda view: view.streaming)

    async def replace(self, old: Server, new: Server) -> None:
        """``old`` is stopped at once, and ``new``, which is detached, serves in epoch 2 without a quorum."""
        await old.stop("immediate", 5000)
        await new.promote(2)
        await self.until(new, lambda v: v.status is ServerStatus.PRIMARY)
        await new.set_quorum(NO_QUORUM)
        await new.write_epoch_record(2)

    async def make_slots(self, node: str) -> None:
        """The slots through which everybody else streams from a running server."""
        running = next(s for s in reversed(self.servers) if s._instance.node == node and s._instance.running)
        await running.ensure_slots(list(self.settings))

    async def until(self, server: Server, wanted: Callable[[ServerView], bool]) -> ServerView:
        """Look until the view is as wanted."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            view = await server.view()
            if wanted(view):
                return view
            assert view.status is not ServerStatus.STOPPED, f"it ended: {server.why_it_ended()}"
            assert asyncio.get_running_loop().time() < deadline, f"not in time: {view}, {server.why_it_ended()}"
            await asyncio.sleep(0.005)

    async def until_equal(self, primary: Server, standby: Server) -> None:
        """Until the standby has all that the primary has flushed."""
        target = await primary.flushed_lsn()
        await self.until(standby, lambda v: v.replay_lsn is not None and v.replay_lsn >= target)

    async def until_rows(self, node: str, query: str, *, present: bool = True) -> None:
        """Ask until the query has rows, or none if not ``present``."""
        connection = await self.connect(node)
        async with connection, asyncio.timeout(DEADLINE_S):
            while bool(await (await connection.execute(query.encode())).fetchall()) is not present:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_log(self, node: str, words: str) -> None:
        """Until the server has written these words into its log."""
        async with asyncio.timeout(DEADLINE_S):
            while words not in self.server_log(node):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def connect(self, node: str, **options: Any) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """An application's session over TCP."""
        settings = self.settings_of(node)
        connection = await psycopg.AsyncConnection.connect(
            host=settings.host,
            port=settings.port,
            user="postgres",
            password=PASSWORD,
            dbname="postgres",
            autocommit=True,
            **options,
        )
        self._connections.append(connection)
        return connection

    @contextlib.contextmanager
    def frozen(self, node: str) -> Iterator[None]:
        """Every process of a server stands still meanwhile."""
        processes = processes_in(self.data_dir(node))
        try:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):  # a worker that has ended since it was listed
                    os.kill(process.pid, signal.SIGSTOP)
            yield
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)

    async def execute(self, node: str, query: str) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own."""
        connection = await self.connect(node)
        async with connection:
            cursor = await connection.execute(query.encode())
            return await cursor.fetchall() if cursor.description else []

    def server_log(self, node: str) -> str:
        side = self.data_dir(node).with_name("data.holdfast")
        return "\n".join(p.read_text() for p in [side / "startup.log", *sorted(side.glob("log/*.log"))] if p.exists())

    async def close(self) -> None:
        running = [p.pid for settings in self.settings.values() for p in processes_in(settings.data_dir)]
        shared = shared_memory_of(*running)
        for settings in self.settings.values():
            shared |= shared_memory_left_in(settings.data_dir)
        for server in self.servers:
            await server.kill()
            await server.close()
        remove_shared_memory(shared)
        for connection in self._connections:
            await connection.close()
        for settings in self.settings.values():
            assert processes_in(settings.data_dir) == []
        shutil.rmtree(self.root)
