"""Where a contract is tried: the simulator's model of PostgreSQL, and the real one, behind one face.

A place keeps three servers, a, b and c. Whoever leads, and what the contract before has left, it knows; `Place.trio`
makes them whole again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

from holdfast.model.register import NO_QUORUM, Member
from holdfast.model.server import ServerStatus, ServerView, Upstream
from holdfast.postgres.config import BARRIER, Runtime
from holdfast.postgres.process import processes_in
from holdfast.postgres.server import Server
from holdfast.testing.checks import Checks
from holdfast.testing.directory import Record
from holdfast.testing.loop import Process, SimulatedLoop
from holdfast.testing.network import Channel, Network
from holdfast.testing.postgres import Commit, Outcome, Postgres
from holdfast.testing.server import SimulatedServer, first_directory
from holdfast.testing.timeouts import SIMULATED
from tests.postgres.holding import HoldingRelay
from tests.postgres.lab import DEADLINE_S, Lab, new_incarnation, nothing

NODES = ("a", "b", "c")
_WAITING = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
_REFUSED = re.compile("forked off current database system timeline|slot .* is active for PID")
Face = Server | SimulatedServer


class Write(ABC):
    """A commit under way in a session of its own."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the client has heard."""

    @abstractmethod
    async def acknowledged(self) -> bool:
        """Wait for the client's answer: whether it is a success without a warning."""

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel the wait, as a client or an administrator can."""


class Line(ABC):
    """A standby's way to its upstream: what the standby says can be held back, and arrives late."""

    @abstractmethod
    def hold(self) -> None:
        """Keep back what the standby says from now on, its end included."""

    @abstractmethod
    def let_go(self) -> None:
        """What was held back arrives."""


class Place(ABC):
    """Three servers and what can be done to them."""

    def __init__(self) -> None:
        self.faces: dict[str, Face] = {}
        self.members: dict[str, Member] = {}
        self.leader = ""
        self.epoch = 0
        self._number = 0

    # ---- what a contract begins with --------------------------------------------------------------------------

    async def trio(self) -> tuple[str, str, str]:
        """Leader and two standbys that stream and have everything; commits are local."""
        if not self.leader:
            await self._make("a")
            for node in ("b", "c"):
                await self._copy(node, "a")
        first, second = (node for node in NODES if node != self.leader)
        await self.faces[self.leader].set_quorum(NO_QUORUM)
        for node in (first, second):
            await self.caught_up(node)
        return self.leader, first, second

    async def _make(self, node: str) -> None:
        face = self.faces[node] = self._face(node)
        await self._initialize(node)
        self.members[node] = Member(node, new_incarnation())
        await face.set_incarnation(self.members[node].incarnation)
        await face.start(standby=False)
        await self.until(node, lambda view: view.status is ServerStatus.PRIMARY)
        await face.set_quorum(NO_QUORUM)
        await face.write_epoch_record(1)
        self.leader, self.epoch = node, 1

    async def _copy(self, node: str, source: str) -> None:
        self.faces[node] = self._face(node)
        self.members[node] = Member(node, new_incarnation())
        await self._fill(node, source)
        await self.join(node)

    async def join(self, node: str) -> None:
        """Start a stopped server as a standby of the leader; returns when it streams."""
        await self.faces[node].start(standby=True)
        await self.until(node, lambda view: view.status is ServerStatus.STANDBY)
        await self.follow(node)

    async def follow(self, node: str, upstream: str | None = None) -> None:
        """Let a running standby follow the leader, or another; returns when it streams."""
        await self.faces[upstream or self.leader].ensure_slots(NODES)
        await self.faces[node].follow(self.upstream(upstream or self.leader), self.members[node])
        await self.until(node, lambda view: view.streaming)

    async def caught_up(self, node: str) -> None:
        """Until a standby, and the leader's walsender of it, have all that the leader has flushed."""
        end, member = await self.faces[self.leader].flushed_lsn(), self.members[node]
        await self.until(node, lambda v: v.streaming and v.replay_lsn is not None and v.replay_lsn >= end)
        await self.until(
            self.leader,
            lambda v: any(
                r.member == member and r.state == "streaming" and (r.flush_lsn or 0) >= end for r in v.replicas
            ),
        )

    async def until(self, node: str, wanted: Callable[[ServerView], bool]) -> ServerView:
        """Look until the view is as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if wanted(view := await self.faces[node].view()):
                    return view
                await asyncio.sleep(0.005)

    def next_number(self) -> int:
        """A row that nobody has written yet."""
        self._number += 1
        return self._number

    # ---- what differs -----------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, contract: Coroutine[Any, Any, None]) -> None:
        """Run a contract to its end."""

    @abstractmethod
    def upstream(self, node: str) -> Upstream:
        """How a server is reached."""

    @abstractmethod
    async def session(self, node: str) -> Callable[[int], Write]:
        """A session that is open from now on; it writes a row by its number. It lives through a promotion."""

    @abstractmethod
    async def waits(self, node: str, write: Write) -> bool:
        """Until the commit waits for standbys; False if it has ended without."""

    @abstractmethod
    async def rows(self, node: str) -> set[int]:
        """What a session there sees."""

    @abstractmethod
    async def pause_replay(self, node: str) -> None:
        """Somebody pauses replay."""

    @abstractmethod
    async def resume_replay(self, node: str) -> None:
        """Somebody resumes it."""

    @abstractmethod
    def freeze(self, node: str) -> None:
        """Stop every process of the server."""

    @abstractmethod
    def thaw(self, node: str) -> None:
        """Let them go on."""

    @abstractmethod
    async def follow_by_line(self, node: str) -> Line:
        """Let a detached standby follow the leader in such a way that what it says can be held back; it streams."""

    @abstractmethod
    async def reload_without_upstream(self, node: str) -> None:
        """Empty ``primary_conninfo`` and reload: less than a detach does."""

    @abstractmethod
    async def receiver(self, node: str) -> object:
        """What tells one connection of a walreceiver from another."""

    @abstractmethod
    async def was_refused(self, node: str, times: int) -> None:
        """Until a standby has been turned away that often: its log goes beyond the fork, or its slot is taken."""

    @abstractmethod
    def refusals(self, node: str) -> int:
        """How often it has been."""

    @abstractmethod
    def _face(self, node: str) -> Face: ...

    @abstractmethod
    async def _initialize(self, node: str) -> None: ...

    @abstractmethod
    async def _fill(self, node: str, source: str) -> None:
        """Make a stopped directory that a new standby begins with."""


class RealPlace(Place):
    """Servers of a laboratory."""

    def __init__(self, lab: Lab, runner: asyncio.Runner) -> None:
        super().__init__()
        self._lab = lab
        self._runner = runner
        self._relays: list[HoldingRelay] = []

    def run(self, contract: Coroutine[Any, Any, None]) -> None:
        self._runner.run(contract)

    async def close(self) -> None:
        """End everything, also what is frozen."""
        for relay in self._relays:
            await relay.close()
        await self._lab.close()

    def upstream(self, node: str) -> Upstream:
        return self._lab.upstream(node)

    def _face(self, node: str) -> Face:
        return self._lab.server(node)

    async def _initialize(self, node: str) -> None:
        await self._lab.make(node, self._real(node))

    async def _make(self, node: str) -> None:
        await super()._make(node)
        await self._lab.execute(node, "CREATE TABLE t (i int)")

    async def _fill(self, node: str, source: str) -> None:
        """A copy of what the leader began with; the leader still has all its log."""
        await self._initialize(node)
        await self.faces[node].set_incarnation(self.members[node].incarnation)

    async def session(self, node: str) -> Callable[[int], Write]:
        connection = await self._lab.connect(node)
        return lambda number: RealWrite(connection, number)

    async def waits(self, node: str, write: Write) -> bool:
        assert isinstance(write, RealWrite)
        watcher = await self._lab.connect(node)
        async with watcher, asyncio.timeout(DEADLINE_S):
            while not write.is_done():
                if (await watcher.execute(_WAITING, (write.pid,))).rowcount:
                    return True
                await asyncio.sleep(0.005)
        return False

    async def rows(self, node: str) -> set[int]:
        return {i for (i,) in await self._lab.execute(node, "SELECT i FROM t")}

    async def pause_replay(self, node: str) -> None:
        await self._lab.execute(node, "SELECT pg_wal_replay_pause()")
        await self._lab.until_rows(node, "SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'")

    async def resume_replay(self, node: str) -> None:
        await self._lab.execute(node, "SELECT pg_wal_replay_resume()")

    async def reload_without_upstream(self, node: str) -> None:
        await self._real(node)._instance.apply(Runtime(BARRIER, None, None, quick_replay=True))

    async def receiver(self, node: str) -> object:
        return await self._lab.execute(node, "SELECT pid FROM pg_stat_wal_receiver")

    async def was_refused(self, node: str, times: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.refusals(node) < times:  # noqa: ASYNC110  # a log file tells nobody that it grows
                await asyncio.sleep(0.01)

    def refusals(self, node: str) -> int:
        return len(_REFUSED.findall(self._lab.server_log(node)))

    def freeze(self, node: str) -> None:
        for process in processes_in(self._lab.data_dir(node)):
            process.suspend()

    def thaw(self, node: str) -> None:
        for process in processes_in(self._lab.data_dir(node)):
            process.resume()

    async def follow_by_line(self, node: str) -> Line:
        there = self.upstream(self.leader)
        self._relays.append(relay := HoldingRelay(there.host, there.port))
        port = await relay.start()
        await self.faces[node].follow(Upstream(there.node, there.host, port), self.members[node])
        await self.until(node, lambda view: view.streaming)
        return RealLine(relay)

    def _real(self, node: str) -> Server:
        face = self.faces[node]
        assert isinstance(face, Server)
        return face


class RealLine(Line):
    """A relay between the two."""

    def __init__(self, relay: HoldingRelay) -> None:
        self._relay = relay

    def hold(self) -> None:
        self._relay.hold()

    def let_go(self) -> None:
        self._relay.let_go()


class RealWrite(Write):
    """An INSERT of its own, and what was said with it."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], number: int) -> None:
        self._connection = connection
        self.pid = connection.info.backend_pid
        self._warnings: list[str | None] = []
        connection.add_notice_handler(lambda notice: self._warnings.append(notice.severity))
        statement = f"INSERT INTO t VALUES ({number})".encode()
        self._task = asyncio.ensure_future(connection.execute(statement))

    def is_done(self) -> bool:
        return self._task.done()

    async def acknowledged(self) -> bool:
        with contextlib.suppress(psycopg.Error):
            await self._task
            return not self._warnings
        return False

    async def cancel(self) -> None:
        await self._connection.cancel_safe()


class NoClients(Checks):
    """The protocol's checks of servers; whether a configuration may acknowledge is no question here."""

    def acknowledged(self, server: Postgres, record: Record) -> None:
        """There is no register."""


class ModelPlace(Place):
    """Servers of the simulator, in a time of their own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._loop = SimulatedLoop()  # type: ignore[abstract]  # sockets, signals and processes are not simulated
        self._random = random.Random(seed)
        self._network, checks = Network(self._loop, self._random), NoClients(self._loop)
        self._servers = {node: Postgres(node, self._loop, self._network, self._random, checks) for node in NODES}
        checks.servers = self._servers
        for server in self._servers.values():
            server.servers = self._servers

    def run(self, contract: Coroutine[Any, Any, None]) -> None:
        loop = self._loop
        loop.stopping, loop.steps = False, 0
        task = loop.spawn(Process("contract"), contract)
        task.add_done_callback(lambda _: setattr(loop, "stopping", True))
        loop.run_until(loop.time() + 2 * DEADLINE_S)
        assert task.done(), "it waits for ever"
        task.result()

    def upstream(self, node: str) -> Upstream:
        return Upstream(node, node, 5432)

    def _face(self, node: str) -> Face:
        return SimulatedServer(self._servers[node], SIMULATED)

    async def _initialize(self, node: str) -> None:
        self._servers[node].directory = first_directory("system-a")

    async def _fill(self, node: str, source: str) -> None:
        await self.faces[node].clone(self.upstream(source), self.members[node], nothing)

    async def session(self, node: str) -> Callable[[int], Write]:
        return lambda number: ModelWrite(self._servers[node], number)

    async def waits(self, node: str, write: Write) -> bool:
        assert isinstance(write, ModelWrite)
        async with asyncio.timeout(DEADLINE_S):
            while not write.is_done():
                if write.commit in self._servers[node].waiting:
                    return True
                await asyncio.sleep(0.001)
        return False

    async def rows(self, node: str) -> set[int]:
        server = self._servers[node]
        assert server.directory is not None
        return {write for write in server.directory.writes if server.shows(write)}

    async def pause_replay(self, node: str) -> None:
        self._servers[node].pause_replay()

    async def resume_replay(self, node: str) -> None:
        self._servers[node].resume_replay()

    async def reload_without_upstream(self, node: str) -> None:
        self._servers[node].follow(None, "")
        await asyncio.sleep(1)

    async def receiver(self, node: str) -> object:
        receiver = self._servers[node].receiver
        return receiver.sender if receiver is not None else None

    async def was_refused(self, node: str, times: int) -> None:
        await asyncio.sleep(5)

    def refusals(self, node: str) -> int:
        return 0

    def freeze(self, node: str) -> None:
        self._servers[node].freeze()

    def thaw(self, node: str) -> None:
        self._servers[node].thaw()

    async def follow_by_line(self, node: str) -> Line:
        await self.follow(node)
        receiver = self._servers[node].receiver
        assert receiver is not None
        assert receiver.sender is not None
        receiver.sender.up = line = ModelLine(self._network, self._loop, node, self.leader)
        return line

    def end(self) -> None:
        """Throw everything away."""
        self._loop.end()


class ModelLine(Channel, Line):
    """The standby's direction of its connection."""

    def __init__(self, network: Network, loop: SimulatedLoop, source: str, target: str) -> None:
        super().__init__(network, loop, source, target)
        self._held: list[tuple[Callable[..., object], tuple[object, ...]]] | None = None

    def send(self, callback: Callable[..., object], *args: object) -> None:
        if self._held is None:
            super().send(callback, *args)
        else:
            self._held.append((callback, args))

    def hold(self) -> None:
        self._held = []

    def let_go(self) -> None:
        held, self._held = self._held or [], None
        for callback, args in held:
            self.send(callback, *args)


class ModelWrite(Write):
    """A commit record of the model."""

    def __init__(self, server: Postgres, number: int) -> None:
        self._server = server
        self._answer: asyncio.Future[Outcome] = server.loop.create_future()
        self.commit: Commit = server.insert(number, waits=True, done=self._done)

    def _done(self, outcome: Outcome) -> None:
        if not self._answer.done():
            self._answer.set_result(outcome)

    def is_done(self) -> bool:
        return self._answer.done()

    async def acknowledged(self) -> bool:
        return await self._answer is Outcome.ACKNOWLEDGED

    async def cancel(self) -> None:
        self._server.cancel(self.commit)
