"""Clients: writers and readers through a proxy that follows the register, and sessions that come past it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.model.server import ServerStatus
from holdfast.proxy.obedience import DRIFT, Obedience
from holdfast.proxy.routing import Routing, Target
from holdfast.store.contract import Put
from holdfast.testing.checks import STALE_READ, Violation
from holdfast.testing.host import CLUSTER, Host
from holdfast.testing.loop import Process, within
from holdfast.testing.postgres import Commit, Outcome, Postgres
from holdfast.testing.store import DistantStore

if TYPE_CHECKING:
    from holdfast.testing.world import World

PATIENCE_S = 2.0
_BETWEEN_WRITES_MS = (120.0, 320.0)
_BETWEEN_READS_MS = (250.0, 600.0)
_BETWEEN_DIRECT_WRITES_MS = (60.0, 400.0)
_CANCELS = 0.15
_CANCEL_AFTER_MS = (20.0, 600.0)


class Proxy:
    """The proxy's real routing, and a model of its data path: it forwards nothing of an epoch that is over."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.routing = Routing(CLUSTER)
        self.process = Process(name)
        self._store = DistantStore(name, world.store)
        self._obedience = SimulatedObedience(
            name, CLUSTER, self._store, self.routing, world.timeouts, self._obey, self.routing.wake, world.loop.time
        )
        self._obedience.world = world

    def _obey(self, change: Put) -> None:
        self.routing.apply(change)

    def start(self) -> None:
        """Follow the store; let its clients come."""
        loop = self.world.loop
        loop.spawn(self.process, self._follow())
        loop.spawn(self.process, self._obedience.run())
        loop.spawn(self.process, self._write())
        loop.spawn(self.process, self._read())

    async def _follow(self) -> None:
        async for change in self._store.watch(self.world.store.keys.prefix):
            self.routing.apply(change)

    # ---- clients of the writable port -------------------------------------------------------------------------

    async def _write(self) -> None:
        world = self.world
        while True:
            await asyncio.sleep(world.random.uniform(*_BETWEEN_WRITES_MS) / 1000)
            target = await self._target()
            world.writes += 1
            answer: asyncio.Future[Outcome] = world.loop.create_future()
            self._send(target, self._served_write, world.writes, answer)
            try:
                await within(answer, PATIENCE_S)
            except (TimeoutError, ConnectionError):
                continue

    def _served_write(self, server: Postgres, number: int, answer: asyncio.Future[Outcome]) -> None:
        def done(outcome: Outcome) -> None:
            self.world.network.send(server.host, self.name, _settle, answer, outcome)

        server.insert(number, waits=True, done=done)

    async def _read(self) -> None:
        """Read what was written last, and hold the answer against what had been acknowledged before."""
        world = self.world
        while True:
            await asyncio.sleep(world.random.uniform(*_BETWEEN_READS_MS) / 1000)
            target = await self._target()
            acknowledged = world.checks.acknowledged_writes
            newest = acknowledged[-1].write if acknowledged else 0
            answer: asyncio.Future[bool] = world.loop.create_future()
            self._send(target, self._served_read, newest, answer)
            try:
                found = await within(answer, PATIENCE_S)
            except (TimeoutError, ConnectionError):
                continue
            shown = self.routing.epoch <= target.epoch and self._obedience.trust.is_fresh()
            if not found and shown:
                raise Violation(
                    STALE_READ,
                    f"a read through {self.name}, of epoch {target.epoch} on {target.node}, misses write {newest}, "
                    "which had been acknowledged before it began",
                )

    def _served_read(self, server: Postgres, newest: int, answer: asyncio.Future[bool]) -> None:
        directory = server.directory
        found = newest == 0 or (directory is not None and newest in directory.writes)
        self.world.network.send(server.host, self.name, _settle, answer, found)

    async def _target(self) -> Target:
        """The primary; held while there is none."""
        while True:
            target = self.routing.primary()
            if target is not None and not self.routing.is_handing_over() and self._obedience.trust.is_fresh():
                return target
            await self.routing.wait_changed()

    def _send(
        self,
        target: Target,
        serve: Callable[..., None],
        number: int,
        answer: asyncio.Future[Outcome] | asyncio.Future[bool],
    ) -> None:
        server = self.world.servers[target.node]
        self.world.network.send(self.name, server.host, self._arrived, server, target.epoch, serve, number, answer)

    def _arrived(
        self,
        server: Postgres,
        epoch: int,
        serve: Callable[..., None],
        number: int,
        answer: asyncio.Future[Outcome] | asyncio.Future[bool],
    ) -> None:
        if server.running:
            server.soon(0.2, self._serve, server, epoch, serve, number, answer)

    def _serve(
        self,
        server: Postgres,
        epoch: int,
        serve: Callable[..., None],
        number: int,
        answer: asyncio.Future[Outcome] | asyncio.Future[bool],
    ) -> None:
        directory = server.directory
        is_primary = server.status is ServerStatus.PRIMARY and not server.stopping
        # A connection is used after one question that proves that its timeline is the register's epoch.
        if is_primary and directory is not None and directory.timeline == epoch:
            serve(server, number, answer)
        else:
            self.world.network.send(server.host, self.name, _refuse, answer)


class SimulatedObedience(Obedience):
    """The proxy's real obedience; only the way to the primary's agent is simulated."""

    world: World

    async def _ask_primary(self) -> None:
        primary = self._routing.primary()
        if primary is None:
            return
        world, host = self.world, self.world.hosts[primary.node]
        began_s = world.loop.time()
        answer: asyncio.Future[tuple[int, int]] = world.loop.create_future()
        world.network.send("p1", host.name, self._asked, host, answer)
        try:
            epoch, fresh_for_ms = await within(answer, self._timeouts.peer_timeout_ms / 1000)
        except TimeoutError:
            return
        if epoch == primary.epoch and self._routing.epoch == primary.epoch:
            self._trust_until(began_s + DRIFT * fresh_for_ms / 1000)

    def _asked(self, host: Host, answer: asyncio.Future[tuple[int, int]]) -> None:
        process, agent, world = host.process, host.agent, self.world
        if process is None or agent is None:
            return
        if process.frozen:
            world.when_thawed(process, self._asked, host, answer)
        else:
            said = (agent.report().register_epoch, agent.fresh_for_ms())
            world.network.send(host.name, "p1", _settle, answer, said)


class DirectClient:
    """Sessions that came past every proxy: they write wherever a server lets them, and sometimes cancel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = Process("direct")

    def start(self) -> None:
        """Begin to write."""
        self.world.loop.spawn(self.process, self._write())

    async def _write(self) -> None:
        world = self.world
        while True:
            await asyncio.sleep(world.random.uniform(*_BETWEEN_DIRECT_WRITES_MS) / 1000)
            for server in world.servers.values():
                if server.status is ServerStatus.PRIMARY and not server.stopping:
                    world.writes += 1
                    server.soon(0.2, self._insert, server, world.writes)

    def _insert(self, server: Postgres, number: int) -> None:
        if server.status is ServerStatus.PRIMARY:
            commit: Commit = server.insert(number, waits=True)
            if self.world.random.random() < _CANCELS:
                server.soon(self.world.random.uniform(*_CANCEL_AFTER_MS), server.cancel, commit)


def _settle(answer: asyncio.Future[object], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _refuse(answer: asyncio.Future[object]) -> None:
    if not answer.done():
        answer.set_exception(ConnectionError("not the primary of that epoch"))
