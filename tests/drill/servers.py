"""Real PostgreSQL servers for the drill's own tests, and a failover made by hand with them (no Holdfast involved)."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from holdfast.local.machine import server_user
from holdfast.local.processes import Process, descendants_of
from holdfast.model.event import Event
from holdfast.model.register import (
    Configuration,
    Member,
    NodeRecord,
    NodeState,
    Phase,
    Quorum,
    Register,
)
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_of
from tests.ports import free_port


class Server:
    """One PostgreSQL in a directory of its own."""

    def __init__(self, home: Path, name: str, bin_dir: Path) -> None:
        self.name = name
        self.home = home
        self.data = home / name
        self.bin_dir = bin_dir
        self.port = free_port()
        self.user = server_user()
        self.process: subprocess.Popen[bytes] | None = None
        if self.user is not None:
            shutil.chown(home, self.user)

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.bin_dir / program), *arguments], user=self.user, capture_output=True, cwd=self.home, check=False
        )
        assert done.returncode == 0, f"{program}: {done.stderr.decode()}"

    def init(self) -> None:
        self.run("initdb", "-D", str(self.data), "-A", "trust", "-U", "postgres", "-N", "--no-locale", "-E", "UTF8")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{self.home}'\n"
                "max_connections = 200\nshared_buffers = '16MB'\nwal_keep_size = '256MB'\nhot_standby = on\n"
            )

    def clone(self, source: Server) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        conninfo = f"{source.dsn} application_name={self.name}"
        self.run("pg_basebackup", "-D", str(self.data), "-d", conninfo, "-R", "-X", "stream", "-c", "fast", "-N")

    async def start(self) -> None:
        """Start it as our own child, so that nothing outlives the test unnoticed."""
        with (self.home / f"{self.name}.log").open("ab") as output:
            self.process = await asyncio.to_thread(
                subprocess.Popen,
                [str(self.bin_dir / "postgres"), "-D", str(self.data), "-p", str(self.port)],
                user=self.user,
                stdout=output,
                stderr=output,
                cwd=self.home,
            )
        async with asyncio.timeout(60):
            while True:
                with suppress(psycopg.OperationalError):
                    async with await psycopg.AsyncConnection.connect(self.dsn):
                        return
                assert self.process.poll() is None, (self.home / f"{self.name}.log").read_text()
                await asyncio.sleep(0.02)

    def kill(self) -> float:
        """SIGKILL the whole process tree; returns when (Unix milliseconds)."""
        at_ms = time.time() * 1000
        if self.process is None or self.process.poll() is not None:
            return at_ms
        self.process.send_signal(signal.SIGSTOP)  # it forks nobody meanwhile
        tree = [p for p in map(Process.of, (self.process.pid, *descendants_of(self.process.pid))) if p is not None]
        shared = shared_memory_of(*(process.pid for process in tree))
        at_ms = time.time() * 1000
        for process in tree:
            process.send(signal.SIGKILL)
        for process in tree:
            process.wait(60)  # a new server does not start beside what is left of the last one
        remove_shared_memory(shared)
        self.process.wait()
        return at_ms

    async def until(self, query: str) -> None:
        """Ask until the query has rows."""
        async with asyncio.timeout(60):
            while not await self.sql(query):  # noqa: ASYNC110 - a table tells nobody
                await asyncio.sleep(0.02)

    async def sql(self, query: str) -> list[tuple[object, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(query.encode())
            return await cursor.fetchall() if cursor.description else []


class HandMadeCluster:
    """Two servers and a failover by hand: what a drill needs of a cluster, with libpq in the place of a proxy.

    ``durable=False`` replicates asynchronously and cuts the standby off just before the kill, so that rows get lost.
    """

    name = "by hand"
    nodes: tuple[str, ...] = ("n1", "n2")
    settings_hash = "sha256:" + "0" * 64
    etcd_version = "none"

    def __init__(self, servers: Mapping[str, Server], *, durable: bool = True) -> None:
        self.servers = servers
        self.durable = durable
        self.postgresql_version = "?"
        self._events: list[Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._rejoined = True
        self._register = self._led_by("n1", 1)
        ports = ",".join(str(server.port) for server in servers.values())
        hosts = ",".join("127.0.0.1" for _ in servers)
        base = f"host={hosts} port={ports} user=postgres dbname=postgres"
        self.write_dsn = f"{base} target_session_attrs=read-write"
        self.read_dsn = f"{base} target_session_attrs=any"

    @staticmethod
    def _led_by(node: str, epoch: int) -> Register:
        members = frozenset(Member(n, "0000000a") for n in ("n1", "n2") if n != node)
        leader = Member(node, "0000000a")
        committed = Configuration(leader, epoch, Quorum(members, 1))
        return Register("byhand", "1", "1", epoch, Phase.SERVING, None, ("n1", "n2"), committed)

    async def start(self) -> None:
        first, second = self.servers.values()
        first.init()
        await first.start()
        await asyncio.to_thread(second.clone, first)
        await second.start()
        if self.durable:
            await first.sql(f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({second.name})'")
            await first.sql("SELECT pg_reload_conf()")
            await first.until("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'quorum'")
            # As the checkpointer has it, all have it; it looks for such news before it takes up a checkpoint.
            await first.sql("CHECKPOINT")
            await first.sql("CHECKPOINT")
        self.postgresql_version = str((await first.sql("SHOW server_version"))[0][0]).split()[0]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for server in self.servers.values():
            server.kill()

    async def register(self) -> Register | None:
        return self._register

    async def node_records(self) -> Mapping[str, NodeRecord]:
        return {
            name: NodeRecord(Member(name, "0000000a"), NodeState.STANDBY, 1, "127.0.0.1", server.port, "http://none")
            for name, server in self.servers.items()
        }

    async def events(self) -> tuple[Event, ...]:
        return tuple(self._events)

    async def wait_until_whole(self, deadline_s: float) -> bool:
        leader = self.servers[self._register.committed.leader.node]
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while True:
                    streams = await leader.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")
                    if self._rejoined and streams:
                        return True
                    await asyncio.sleep(0.05)
        return False

    async def kill_postgres(self, node: str) -> float:
        standby = next(server for name, server in self.servers.items() if name != node)
        if not self.durable:
            await standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
            await standby.sql("SELECT pg_reload_conf()")
            await self._until_written_alone(self.servers[node])
        self._rejoined = False
        at_ms = self.servers[node].kill()
        task = asyncio.create_task(self._fail_over(self.servers[node], standby))
        self._tasks.add(task)
        return at_ms

    async def _until_written_alone(self, primary: Server) -> None:
        """The loss itself: until the primary alone has more rows than clients that have not heard of theirs yet."""
        await primary.until("SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_replication)")
        ((schema,),) = await primary.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'drill%'")
        rows = f"SELECT count(*) FROM {schema}.writes"
        ((before,),) = await primary.sql(rows)
        await primary.until(f"{rows} HAVING count(*) > {before} + 50")

    async def direct_dsn(self, node: str) -> str:
        return self.servers[node].dsn

    def _note(self, source: str, kind: str, rule: str | None = None, **detail: str) -> None:
        self._events.append(Event(time.time() * 1000, source, kind, 2, rule, dict(detail)))

    async def _fail_over(self, dead: Server, standby: Server) -> None:
        self._note(standby.name, "epoch.opened", "suspect.postmaster-died")
        await standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
        await standby.sql("SELECT pg_reload_conf()")
        # A replay that already waits for a reader does not see a lower max_standby_streaming_delay: end the reader.
        await standby.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%long_reader'"
        )
        self._note(standby.name, "recruit.joined", node=standby.name, position="0/0")
        self._note(standby.name, "candidate.chosen", node=standby.name)
        await standby.sql("SELECT pg_promote()")
        self._note(standby.name, "primary.promoted")
        self._register = self._led_by(standby.name, 2)
        self._note(standby.name, "epoch.serving")
        await asyncio.to_thread(dead.clone, standby)
        await dead.start()
        self._rejoined = True
        self._note(dead.name, "node.rejoined", node=dead.name)
