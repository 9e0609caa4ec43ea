"""What sessions do to a cluster: readers in the way, paused replay, cancels, writers past the proxy."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

import psycopg

from holdfast.drill.hardship import Hardship
from holdfast.drill.probes import ask
from holdfast.drill.scenario import DIRECT_WRITER, LOWERED_WRITER, Action, NotInjected, Role, Scene
from holdfast.local.layout import APP_DATABASE, APP_USER
from holdfast.local.processes import Process, descendants_of
from holdfast.model.timeouts import DrillTimeouts


@dataclass(frozen=True, slots=True)
class PauseReplay(Action):
    """``pg_wal_replay_pause()`` on every standby."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "replay is paused on every standby"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        for node in scene.standbys:
            await ask(await scene.cluster.direct_dsn(node), "SELECT pg_wal_replay_pause()")

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        await asyncio.sleep(0.5)
        for node in scene.standbys:
            state = await ask(await scene.cluster.direct_dsn(node), "SELECT pg_get_wal_replay_pause_state()")
            if state != "paused":
                raise NotInjected(f"replay on {node} is {state}")
        return f"pg_get_wal_replay_pause_state() says paused on {', '.join(scene.standbys)}"


@dataclass(frozen=True, slots=True)
class ReadForLong(Action):
    """A reader on each standby whose snapshot replay conflicts with, and the conflict itself."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "a long reader on each standby is in the way of replay"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        hardship = Hardship(scene.workload.schema, DrillTimeouts())
        scene.undo.append(hardship.close)
        await hardship.load(scene.cluster.write_dsn, large=False, progress=lambda text: None)
        await asyncio.sleep(0.5)
        await hardship.read_for_long({node: await scene.cluster.direct_dsn(node) for node in scene.standbys})
        # Versions that the load's own long transactions may still see are not removed the first time.
        await hardship.obstruct_replay(scene.cluster.write_dsn)
        await asyncio.sleep(2.0)
        await hardship.obstruct_replay(scene.cluster.write_dsn)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        await asyncio.sleep(1.0)
        query = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint"
        behind = {node: await ask(await scene.cluster.direct_dsn(node), query) for node in scene.standbys}
        if not any(isinstance(lag, int) and lag > 0 for lag in behind.values()):
            raise NotInjected("replay is not held up by the readers")
        return "bytes received and not replayed: " + ", ".join(f"{node} {lag}" for node, lag in behind.items())


@dataclass(frozen=True, slots=True)
class WriteDirectly(Action):
    """Sessions of the application on each standby, past the proxy, that try to write all the time."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "sessions past the proxy try to write on each standby"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        cluster = scene.hosted
        for number, node in enumerate(scene.standbys):
            port, address = cluster.file.ports.nodes[node].postgres, cluster.file.address(node)
            scene.workload.join(cluster.dsn(port, APP_USER, "app", APP_DATABASE, address), DIRECT_WRITER + number)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        await asyncio.sleep(1.0)
        refused = scene.workload.history.sqlstates().get("25006", 0)
        if not refused:
            raise NotInjected("no session met a read-only standby")
        return f"{refused} writes met a read-only standby (SQLSTATE 25006)"


@dataclass(frozen=True, slots=True)
class LowerDurability(Action):
    """Sessions that set ``synchronous_commit = local`` for themselves."""

    count: int = 2

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"{self.count} sessions set synchronous_commit = local"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        dsn = scene.cluster.write_dsn + "?options=-csynchronous_commit%3Dlocal"
        for number in range(self.count):
            scene.workload.join(dsn, LOWERED_WRITER + number, interval_ms=5.0)


@dataclass(frozen=True, slots=True)
class StopConfirming(Action):
    """SIGSTOP of the walreceivers of all standbys: every commit waits for its quorum from now on."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "no standby confirms anything (SIGSTOP of their walreceivers)"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        stopped: list[Process] = []
        for node in scene.standbys:
            pid = await ask(await scene.cluster.direct_dsn(node), "SELECT pid FROM pg_stat_wal_receiver")
            process = Process.of(pid) if isinstance(pid, int) else None
            if process is None or not process.send(signal.SIGSTOP):
                raise NotInjected(f"no walreceiver runs on {node}")
            stopped.append(process)
        scene.keep("walreceivers", stopped)

        async def go_on() -> None:
            for process in stopped:
                process.send(signal.SIGCONT)

        scene.undo.append(go_on)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        await asyncio.sleep(0.1)
        before = scene.workload.history.acknowledged_at_ms(before_writer=LOWERED_WRITER)
        await asyncio.sleep(0.3)
        after = scene.workload.history.acknowledged_at_ms(before_writer=LOWERED_WRITER)
        if len(after) - len(before) > 2:
            raise NotInjected("writes go on being acknowledged")
        return "no write is acknowledged any more"


@dataclass(frozen=True, slots=True)
class ConfirmAgain(Action):
    """SIGCONT of the walreceivers."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the standbys confirm again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        stopped = scene.kept["walreceivers"]
        assert isinstance(stopped, list)
        for process in stopped:
            process.send(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class CancelStorm(Action):
    """Every writer's statement is cancelled, over and over, while its commit waits."""

    for_s: float = 1.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"every writer is cancelled again and again for {self.for_s:g} s"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        loop = asyncio.get_running_loop()
        until_s, sent = loop.time() + self.for_s, 0
        while loop.time() < until_s:
            try:
                sent += await scene.workload.cancel_writers()
            except psycopg.Error as error:
                scene.note(f"a cancel request failed: {str(error).strip()}")
            await asyncio.sleep(0.05)
        scene.keep("cancels", sent)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        if not scene.kept["cancels"]:
            raise NotInjected("no cancel request was sent")
        return f"{scene.kept['cancels']} cancel requests were sent through the proxies"


@dataclass(frozen=True, slots=True)
class CrashBackend(Action):
    """SIGKILL of one backend of a node: PostgreSQL throws all others out and ends."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"SIGKILL of one backend of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'app' LIMIT 1"
        pid = await ask(await scene.cluster.direct_dsn(node), query)
        postmaster = scene.hosted.postmaster(node)
        if not isinstance(pid, int) or postmaster is None or pid not in descendants_of(postmaster.pid):
            raise NotInjected("the application has no session there")
        backend = Process.of(pid)
        scene.keep("fault_at_ms", scene.now_ms())
        if backend is None or not backend.send(signal.SIGKILL):
            raise NotInjected("the session had ended")
        scene.keep("backend", backend)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        backend = scene.kept["backend"]
        if not isinstance(backend, Process) or not await asyncio.to_thread(backend.wait, 2.0):
            raise NotInjected("the backend lives")
        return f"backend {backend.pid} is gone"
