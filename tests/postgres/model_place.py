"""Where contracts are tried on the model: servers of the simulator, in a time of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.model.server import Upstream
from holdfast.testing.checks import Checks
from holdfast.testing.directory import Record
from holdfast.testing.loop import Process, SimulatedLoop
from holdfast.testing.network import Channel, Network
from holdfast.testing.postgres import Commit, Outcome, Postgres
from holdfast.testing.server import SimulatedServer, first_directory
from holdfast.testing.timeouts import SIMULATED
from tests.postgres.lab import DEADLINE_S, nothing
from tests.postgres.places import NODES, Face, Line, Place, Write


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

    async def slow_replay(self, node: str) -> None:
        self._servers[node].slow_replay(3_600_000)

    async def hurry_replay(self, node: str) -> None:
        self._servers[node].slow_replay(0)

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
