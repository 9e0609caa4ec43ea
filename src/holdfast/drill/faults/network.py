"""Cables that are cut, go one way, flap or are slow; nobody is told of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from holdfast.drill.hosts import Direction
from holdfast.drill.probes import ask, connects, must_be, until
from holdfast.drill.scenario import Action, NotInjected, Role, Scene

CAUGHT_UP_BYTES = 65_536
"""Less than a busy primary writes between two looks."""


def _at(scene: Scene, node: str) -> tuple[str, int]:
    file = scene.hosted.file
    return file.address(node), file.ports.nodes[node].postgres


@dataclass(frozen=True, slots=True)
class Cut(Action):
    """The switch drops every frame from and to a host, or those of one direction."""

    role: Role
    direction: Direction | None = None

    @property
    def words(self) -> str:
        """See `Action`."""
        if self.direction is None:
            return f"the host of {self.role} is cut off from everybody"
        heard = "hears nobody, but is heard" if self.direction is Direction.IN else "is heard by nobody, but hears"
        return f"the host of {self.role} {heard}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        host = scene.hosted.hosts[node]
        scene.keep("cut", node)

        async def mend() -> None:
            await asyncio.to_thread(host.mend)

        scene.undo.append(mend)
        if self.direction is None:
            await asyncio.to_thread(host.cut)
        else:
            await asyncio.to_thread(host.deafen, self.direction)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        node = str(scene.kept["cut"])
        alive = len(scene.hosted.hosts[node].processes())
        if not alive:
            raise NotInjected(f"nothing runs on {node}: it is not cut off, but gone")
        return f"{alive} processes live on {node}; " + await must_be("silence", *_at(scene, node))


@dataclass(frozen=True, slots=True)
class Mend(Action):
    """The cable that was cut, is whole."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the network is whole again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await asyncio.to_thread(scene.hosted.hosts[str(scene.kept["cut"])].mend)


@dataclass(frozen=True, slots=True)
class CutStandbys(Action):
    """Every standby is cut off: what the primary writes from now on is nowhere else."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "every standby is cut off"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        hosts = [scene.hosted.hosts[node] for node in scene.standbys]

        async def mend() -> None:
            for host in hosts:
                await asyncio.to_thread(host.mend)

        scene.undo.append(mend)
        for host in hosts:
            await asyncio.to_thread(host.cut)
        scene.keep("writes before", scene.workload.history.acknowledged)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        before = scene.kept["writes before"]
        assert isinstance(before, int)

        async def some() -> bool:
            return scene.workload.history.acknowledged >= before + 20

        if not await until(some, 1.0, every_s=0.01):
            raise NotInjected("the primary acknowledges nothing without its standbys")
        return f"{scene.workload.history.acknowledged - before} writes were acknowledged that no standby can have"


@dataclass(frozen=True, slots=True)
class MendStandbys(Action):
    """They are reachable again."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the standbys can be reached again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        for node in scene.standbys:
            await asyncio.to_thread(scene.hosted.hosts[node].mend)


@dataclass(frozen=True, slots=True)
class Flap(Action):
    """The cable of a host goes and comes, again and again."""

    role: Role
    times: int = 8
    down_s: float = 0.4
    up_s: float = 0.8

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the host of {self.role} is cut off {self.times} times for {self.down_s * 1000:.0f} ms"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        host = scene.hosted.hosts[node]
        silences = 0
        for _ in range(self.times):
            await asyncio.to_thread(host.cut)
            try:
                seen = asyncio.create_task(connects(*_at(scene, node)))
                await asyncio.sleep(self.down_s)
                silences += not seen.done()
                seen.cancel()
            finally:
                await asyncio.to_thread(host.mend)
            await asyncio.sleep(self.up_s)
        scene.keep("silences", silences)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        if scene.kept["silences"] != self.times:
            raise NotInjected(f"only {scene.kept['silences']} of {self.times} cuts were silent")
        return f"each of {self.times} times a new connection got no answer until the cable was whole"


@dataclass(frozen=True, slots=True)
class Slow(Action):
    """A cable that carries little: frames queue, then are dropped."""

    role: Role
    kbit_per_s: int
    queue_ms: int

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the cable of {self.role} carries {self.kbit_per_s} kbit/s, with a queue of {self.queue_ms} ms"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        host = scene.hosted.hosts[node]
        scene.keep("cut", node)

        async def mend() -> None:
            await asyncio.to_thread(host.mend)

        scene.undo.append(mend)
        await asyncio.to_thread(host.throttle, self.kbit_per_s, self.queue_ms)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        reader, writer = await asyncio.open_connection(*_at(scene, str(scene.kept["cut"])))
        writer.close()
        del reader
        return f"a new connection takes {(loop.time() - began_at) * 1000:.0f} ms"


@dataclass(frozen=True, slots=True)
class WaitUntilCaughtUp(Action):
    """Waits until every standby has flushed what the primary has; TCP remembers a slow path for a while."""

    within_s: float = 60.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return "wait until every standby has caught up"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        lag = "pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn)"
        query = f"SELECT coalesce(max({lag}), 0)::bigint FROM pg_stat_replication"
        dsn = await scene.cluster.direct_dsn(await scene.node(Role.LEADER))

        async def caught_up() -> bool:
            behind = await ask(dsn, query)
            return isinstance(behind, int) and behind < CAUGHT_UP_BYTES

        if not await until(caught_up, self.within_s, every_s=0.2):
            scene.problem(f"a standby had not caught up {self.within_s:g} s after the network was whole again")
