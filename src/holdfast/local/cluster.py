"""A whole cluster on one machine, as ``up``, ``down``, ``status``, ``demo`` and the drills see it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.local import layout as rooms
from holdfast.local import machine
from holdfast.local.configs import settings_hash, store_settings, write_configs
from holdfast.local.layout import APP_DATABASE, APP_USER, LOOPBACK, ClusterFile, Layout
from holdfast.local.plan import RunFiles, SupervisorState
from holdfast.local.processes import hold_postgres, postmaster_of
from holdfast.local.servers import find_servers, make_plan
from holdfast.local.starting import IS_PRIMARY, in_words
from holdfast.local.troubles import InTrouble, Patience, last_words, processes_in_trouble
from holdfast.model.errors import EnvironmentFault, HoldfastError, RegisterError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.lease import LeaseRecord
from holdfast.model.policy import DEFAULT_POLICY, Durability, Policy
from holdfast.model.register import NodeRecord, NodeState, Phase, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus
from holdfast.model.timeouts import LocalTimeouts, Timeouts

if TYPE_CHECKING:
    import psycopg
    from aiohttp import ClientSession

    from holdfast.store.contract import Store

Progress = Callable[[str], None]
_BEHIND = """
SELECT FROM pg_stat_replication WHERE state = 'streaming' AND (replay_lsn IS NULL OR replay_lsn < %s::pg_lsn)
"""


class LocalCluster:
    """One directory's cluster. Satisfies ``holdfast.drill.cluster.ClusterUnderTest``."""

    def __init__(self, layout: Layout, file: ClusterFile) -> None:
        self.layout = layout
        self.file = file
        self.timeouts = LocalTimeouts()
        self._files = RunFiles(layout.run)
        self._keys = Keys(file.cluster)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self.kept = False
        self._store: Store | None = None
        self._http: ClientSession | None = None

    # -- making, opening ----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        nodes: int,
        port: int | None = None,
        temporary: bool = False,
        parameters: Mapping[str, str] | None = None,
        witness: bool = False,
    ) -> LocalCluster:
        """Make the directory of a new cluster; nothing runs yet.

        ``temporary`` takes any free ports. With a ``witness`` two nodes are enough. Raises ConfigurationError,
        EnvironmentFault, and leaves nothing then.
        """
        layout = Layout.at(directory)
        names = rooms.node_names(nodes, witness=witness)
        rooms.check_new(layout)
        machine.check_system()
        os_user = machine.server_user()
        machine.check_place(layout.root, nodes, os_user)
        with rooms.claimed(layout):
            ports = rooms.draw_ports(names, port, anywhere=temporary, witness=witness)
            postgresql, etcd = find_servers(machine.private_copy_dir(layout), os_user)
            file = ClusterFile("main", names, ports, postgresql, etcd, os_user, parameters=dict(parameters or {}))
            file = replace(file, witness=rooms.WITNESS if witness else None)
            file = rooms.make_directories(layout, file, machine.owner_ids(os_user))
            write_configs(layout, file)
        return cls(layout, file)

    @classmethod
    def open(cls, directory: Path) -> LocalCluster:
        """The cluster of a directory; raises ConfigurationError if there is none."""
        layout = Layout.at(directory)
        return cls(layout, layout.load())

    # -- what a drill asks --------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The cluster's name in the store."""
        return self.file.cluster

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return self.file.nodes

    @property
    def settings_hash(self) -> str:
        """``sha256:…`` over every effective setting."""
        return settings_hash(self.layout, self.file)

    @property
    def postgresql_version(self) -> str:
        """For people and reports."""
        return self.file.postgresql.version

    @property
    def etcd_version(self) -> str:
        """For people and reports."""
        return self.file.etcd.version

    def dsn(self, port: int, user: str, secret: str, database: str, host: str = LOOPBACK) -> str:
        """A connection string with its password; never log it."""
        password = self.layout.read_secret(secret)
        return f"postgresql://{user}:{password}@{host}:{port}/{database}"

    @property
    def write_dsn(self) -> str:
        """The application's way to the primary, through the proxy."""
        return self.dsn(self.file.ports.write, APP_USER, "app", APP_DATABASE)

    @property
    def read_dsn(self) -> str:
        """The application's way to a standby, through the proxy."""
        return self.dsn(self.file.ports.read, APP_USER, "app", APP_DATABASE)

    async def direct_dsn(self, node: str) -> str:
        """Past the proxy, as the superuser, to the application's database."""
        return self.superuser_dsn(node, APP_DATABASE)

    def superuser_dsn(self, node: str, database: str) -> str:
        """Past the proxy, as the superuser, to any database; never log it."""
        port, host = self.file.ports.nodes[node].postgres, self.file.address(node)
        return self.dsn(port, "postgres", "superuser", database, host)

    def api_url(self, node: str) -> str:
        """Where a node's agent answers."""
        ports = self.file.ports
        port = ports.witness_api if node == self.file.witness else ports.nodes[node].api
        return f"http://{self.file.address(node)}:{port}"

    @property
    def proxy_url(self) -> str:
        """Where the proxy answers."""
        return f"http://{LOOPBACK}:{self.file.ports.proxy_api}"

    async def register(self) -> Register | None:
        """The register as the store has it; raises StoreUnavailable."""
        entry = await self.store().get(self._keys.register)
        return Register.from_json(entry.value) if entry else None

    async def policy(self) -> Policy:
        """The policy in the store; raises StoreUnavailable, and RegisterError if it cannot be read."""
        entry = await self.store().get(Keys(self.name).policy)
        return DEFAULT_POLICY if entry is None else Policy.from_json(entry.value)

    async def lease(self) -> LeaseRecord | None:
        """The lease in the store; raises StoreUnavailable, and RegisterError if it cannot be read."""
        entry = await self.store().get(self._keys.lease)
        return None if entry is None else LeaseRecord.from_json(entry.value)

    async def node_records(self) -> dict[str, NodeRecord]:
        """What each node says of itself in the store; raises StoreUnavailable."""
        snapshot = await self.store().list(self._keys.nodes)
        records = [NodeRecord.from_json(entry.value) for entry in snapshot.entries]
        return {record.member.node: record for record in records}

    async def events(self) -> tuple[Event, ...]:
        """The journal, oldest first; raises StoreUnavailable."""
        return await self.store().read_events(100_000)

    async def kill_postgres(self, node: str) -> float:
        """SIGKILL every process of a node's PostgreSQL; returns when (Unix milliseconds).

        Raises EnvironmentFault if it does not run.
        """
        held = await asyncio.to_thread(hold_postgres, self.layout.data_dir(node))
        if held is None:
            raise EnvironmentFault(f"{node}: its PostgreSQL does not run, so it cannot be killed")
        at_ms = time.time() * 1000
        held.kill()
        return at_ms

    async def wait_until_whole(self, deadline_s: float) -> bool:
        """Whether within the deadline a primary serves and all others are members, stream from it and let people in."""
        give_up_at = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(StoreUnavailable):
                if await self._is_whole():
                    return True
            if time.monotonic() >= give_up_at:
                return False
            await asyncio.sleep(self.timeouts.local_poll_ms / 1000)

    async def _is_whole(self) -> bool:
        register = await self.register()
        if register is None or register.phase is not Phase.SERVING:
            return False
        leader = register.committed.leader
        if {m.node for m in register.committed.quorum.members} != set(self.nodes) - {leader.node}:
            return False
        if register.committed.quorum.k == 0 and (await self.policy()).durability is not Durability.ASYNCHRONOUS:
            return False
        reports = await self.reports()
        records = await self.node_records()
        return (
            all(
                report is not None
                and report.status is ServerStatus.STANDBY
                and report.streaming
                and report.isolated is None
                for name, report in reports.items()
                if name != leader.node
            )
            and set(records) - {self.file.witness} == set(self.nodes)
            and all((r.state is NodeState.PRIMARY) == (n == leader.node) for n, r in records.items())
        )

    # -- asking the agents --------------------------------------------------------------------------------------

    def store(self) -> Store:
        """A client of the cluster's store."""
        if self._store is None:
            from holdfast.store.etcd import EtcdStore

            self._store = EtcdStore(store_settings(self.file), self.file.cluster, Timeouts(), owner="commands")
        return self._store

    def http(self) -> ClientSession:
        """A client for the agents' API."""
        if self._http is None:
            from aiohttp import ClientSession, ClientTimeout

            self._http = ClientSession(timeout=ClientTimeout(total=Timeouts().store_request_ms / 1000))
        return self._http

    async def reports(self) -> dict[str, NodeReport | None]:
        """What each agent says now; None for one that does not answer."""
        return await self._ask_reports(self.nodes)

    async def voter_reports(self) -> dict[str, NodeReport | None]:
        """The same, and what the witness says."""
        return await self._ask_reports((*self.nodes, *((self.file.witness,) if self.file.witness else ())))

    async def _ask_reports(self, names: tuple[str, ...]) -> dict[str, NodeReport | None]:
        answers = await asyncio.gather(*(self._report(name) for name in names))
        return dict(zip(names, answers, strict=True))

    async def _report(self, name: str) -> NodeReport | None:
        from aiohttp import ClientError, ClientTimeout

        limit = ClientTimeout(total=Timeouts().peer_timeout_ms / 1000)
        try:
            async with self.http().get(f"{self.api_url(name)}/node", timeout=limit) as answer:
                return NodeReport.from_json(await answer.read()) if answer.status == 200 else None
        except (ClientError, TimeoutError, RegisterError, OSError):
            return None

    async def switch_over(self, target: str | None) -> str:
        """Ask the primary to hand over; returns what it says. Raises HoldfastError with its reason if it refuses."""
        from holdfast.local.switchover import switch_over

        return await switch_over(self, target)

    # -- life ---------------------------------------------------------------------------------------------------

    def state(self) -> SupervisorState:
        """What the supervisor says of itself and of its processes."""
        return SupervisorState.load(self._files.state)

    def start(self, *, remove_unless_kept: bool = False) -> None:
        """Start the supervisor, tied to us until `keep`; raises EnvironmentFault if a port is taken.

        With ``remove_unless_kept`` it removes the directory when we end without having called `keep`.
        """
        self.layout.load()  # a directory that was removed meanwhile is not made again in part
        self.file = rooms.ensure_socket_directories(self.layout, self.file, machine.owner_ids(self.file.os_user))
        if not self.has_leftovers():
            machine.check_ports(self.layout, self.file)
        write_configs(self.layout, self.file)
        self.layout.save(self.file)
        self._write_plan()
        command = [sys.executable, "-m", "holdfast.cli", "supervise", str(self.layout.root), "--tied"]
        with self._files.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                command + (["--remove"] if remove_unless_kept else []),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def _write_plan(self) -> None:
        plan = make_plan(self.layout, self.file, self.timeouts)
        rooms.write_atomically(self._files.plan, plan.to_json(), 0o600)

    def has_leftovers(self) -> bool:
        """Whether processes of it run, whoever started them."""
        from holdfast.local.supervisor import find_by_command

        plan = make_plan(self.layout, self.file, self.timeouts)
        return bool(find_by_command(s.command for s in plan.processes)) or any(
            postmaster_of(self.layout.data_dir(name)) for name in self.nodes
        )

    async def wait_until_serving(self, progress: Progress, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until clients can write, telling each step; then make the application's role and database once.

        ``meanwhile`` is called when there is a primary and its standbys are still being copied: the one moment of a
        start at which the processors have little to do, good for loading what comes next.
        Raises InTrouble if a process does not stay up or a node does not come up, HoldfastError if it takes too long.
        """
        told: dict[str, str] = {}
        patience = Patience(self, progress)
        give_up_at = time.monotonic() + self.timeouts.local_start_ms / 1000
        while True:
            self._check_processes()
            reports = await self.reports()
            for name, report in reports.items():
                words = in_words(report)
                if words and told.get(name) != words:
                    told[name] = words
                    progress(f"{name}: {words}")
            await patience.look(reports)
            if meanwhile is not None and IS_PRIMARY in told.values():
                meanwhile()
                meanwhile = None
            primary = await self._serving_primary()
            if primary is not None:
                break
            if time.monotonic() > give_up_at:
                last = "; ".join(f"{name} {words}" for name, words in sorted(told.items()))
                raise HoldfastError(f"no primary serves yet ({last or 'no agent answers'}); {self.where_to_look()}")
            await asyncio.sleep(self.timeouts.local_poll_ms / 1000)
        if not self.file.complete:
            await self._make_application(primary)
            progress(f"role {APP_USER} and database {APP_DATABASE} are made")
            self.file = replace(self.file, complete=True)
            self.layout.save(self.file)
            self._write_plan()

    async def wait_until_joined(self, progress: Progress) -> None:
        """Wait until every node takes part, or is on its way; raises InTrouble if one will not come by itself."""
        patience, before = Patience(self, progress, final_s=0), "the cluster serves without "
        give_up_at = time.monotonic() + self.timeouts.local_join_ms / 1000
        while not await self.wait_until_whole(0):
            self._check_processes()
            await patience.look(await self.reports(), before)
            if time.monotonic() > give_up_at:
                patience.end(before)
                progress("not every node takes part yet: `holdfast status` shows how it goes on")
                return
            await asyncio.sleep(self.timeouts.local_poll_ms / 1000)

    async def _serving_primary(self) -> str | None:
        """The node that the register names as leader and that says itself that it serves."""
        from aiohttp import ClientError

        try:
            register = await self.register()
            if register is None or register.leader is None:
                return None
            async with self.http().get(f"{self.api_url(register.leader.node)}/primary") as answer:
                return register.leader.node if answer.status == 200 else None
        except (StoreUnavailable, ClientError, TimeoutError, OSError):
            return None

    async def wait_until_proxy_answers(self) -> None:
        """Wait until the proxy's port takes connections; raises EnvironmentFault, HoldfastError."""
        give_up_at = time.monotonic() + self.timeouts.local_start_ms / 1000
        place = self.file.address(self.file.proxies[0]), self.file.ports.write
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(*place)
                writer.close()
                return
            self._check_processes()
            if time.monotonic() > give_up_at:
                raise HoldfastError(f"the proxy does not answer; {self.where_to_look()}")
            await asyncio.sleep(self.timeouts.local_poll_ms / 1000)

    def where_to_look(self) -> str:
        """Where a person finds more."""
        return f"the logs are {self.layout.proxy_log} and {self.layout.agent_log(self.nodes[0])}"

    def _check_processes(self) -> None:
        """Raise EnvironmentFault if the supervisor ended, InTrouble if a process that all need keeps ending.

        A cluster that has served before may do without a node.
        """
        if self._supervisor is not None and self._supervisor.poll() is not None:
            raise EnvironmentFault(f"the supervisor ended: {last_words(self._files.log) or 'without a word'}")
        for trouble in processes_in_trouble(self):
            if not (self.file.complete and trouble.who in self.nodes):
                raise InTrouble(trouble)

    async def _make_application(self, primary: str) -> None:
        """The role and the database that applications use; again is no error. Raises HoldfastError."""
        import psycopg
        from psycopg import sql

        dsn = self.superuser_dsn(primary, "postgres")
        try:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=10) as connection:
                verifier = connection.pgconn.encrypt_password(
                    self.layout.read_secret("app").encode(), APP_USER.encode(), b"scram-sha-256"
                ).decode()
                role, database = sql.Identifier(APP_USER), sql.Identifier(APP_DATABASE)
                cursor = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (APP_USER,))
                verb = "ALTER" if await cursor.fetchone() else "CREATE"
                await connection.execute(
                    sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(verifier))
                )
                cursor = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (APP_DATABASE,))
                if not await cursor.fetchone():
                    await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
                await self._wait_until_shown(connection)
        except psycopg.Error as error:
            raise HoldfastError(f"the application's database could not be made on {primary}: {error}") from error

    async def _wait_until_shown(self, connection: psycopg.AsyncConnection) -> None:
        """Wait until the standbys show what the primary has, so that readers find it; not for one far behind."""
        cursor = await connection.execute("SELECT pg_current_wal_lsn()")
        row = await cursor.fetchone()
        give_up_at = time.monotonic() + self.timeouts.local_replay_ms / 1000
        while time.monotonic() < give_up_at:
            cursor = await connection.execute(_BEHIND, row)
            if not await cursor.fetchall():
                return
            await asyncio.sleep(self.timeouts.local_poll_ms / 1000)

    def keep(self) -> None:
        """Let the cluster run on without us."""
        self.kept = True
        if self._supervisor is not None and self._supervisor.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.write(b"keep\n")
                self._supervisor.stdin.close()
            self._supervisor.stdin = None

    async def stop(self) -> bool:
        """Stop everything of the cluster, also what a killed supervisor left; False if nothing ran."""
        from holdfast.local.plan import Plan
        from holdfast.local.supervisor import stop_in_order, wait_until_ended

        state = self.state()
        ran = state.is_alive or self._supervisor is not None or self.has_leftovers()
        if self._supervisor is not None:
            self.keep_nothing()
            await asyncio.to_thread(self._supervisor.wait)
            self._supervisor = None
            state = self.state()
        # Ours may have ended long ago, and somebody else's may have come after it.
        if state.is_alive and state.supervisor is not None:
            state.supervisor.send(signal.SIGTERM)
            await wait_until_ended(state.supervisor)
        if self._files.plan.exists() and self.has_leftovers():
            await stop_in_order(Plan.load(self._files.plan), self.state(), lambda event, **detail: None)
            self._files.state.unlink(missing_ok=True)
        return ran

    def keep_nothing(self) -> None:
        """Tell our tied supervisor to stop; returns at once."""
        if self._supervisor is not None:
            if self._supervisor.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._supervisor.stdin.close()
                self._supervisor.stdin = None
            with contextlib.suppress(ProcessLookupError):
                self._supervisor.terminate()

    async def close(self) -> None:
        """Release connections; the cluster goes on."""
        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._store is not None:
            await self._store.close()
            self._store = None
