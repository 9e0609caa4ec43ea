"""Hosts that die, lose their power or freeze, and processes on them that do."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from enum import StrEnum

from holdfast.drill.hosts import Frozen
from holdfast.drill.probes import must_be, must_be_stopped, until
from holdfast.drill.scenario import Action, NotInjected, Role, Scene
from holdfast.local.processes import Process, descendants_of
from holdfast.model.errors import StoreUnavailable
from holdfast.model.register import Phase


def _postgres_at(scene: Scene, node: str) -> tuple[str, int]:
    file = scene.hosted.file
    return file.address(node), file.ports.nodes[node].postgres


@dataclass(frozen=True, slots=True)
class KillHost(Action):
    """SIGKILL of every process of a host: its kernel lives, and resets connections."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"SIGKILL of every process on the host of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        scene.keep("host", node)
        if not await asyncio.to_thread(scene.hosted.kill_host, node):
            raise NotInjected(f"no process ran on {node}")

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        node = str(scene.kept["host"])
        left = len(scene.hosted.hosts[node].processes())
        if left:
            raise NotInjected(f"{left} processes still run on {node}")
        return f"{node}: no process; " + await must_be("refused", *_postgres_at(scene, node))


@dataclass(frozen=True, slots=True)
class PowerOff(Action):
    """The host is gone from one packet to the next: no reset, no farewell."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"power loss of the host of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        scene.keep("host", node)
        if not await asyncio.to_thread(scene.hosted.power_off, node):
            raise NotInjected(f"no process ran on {node}")
        scene.keep("powered_off_at_ms", scene.now_ms())

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return await must_be("silence", *_postgres_at(scene, str(scene.kept["host"])))


@dataclass(frozen=True, slots=True)
class PowerOn(Action):
    """Power for the host that was lost last; it boots as it is set up to."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the lost host boots again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await asyncio.to_thread(scene.hosted.power_on, str(scene.kept["host"]))


@dataclass(frozen=True, slots=True)
class FreezeHost(Action):
    """SIGSTOP of every process: the kernel goes on acknowledging packets, nobody answers."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"SIGSTOP of every process on the host of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await _freeze(scene, await asyncio.to_thread(scene.hosted.freeze, await scene.node(self.role)))

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return await must_be_stopped(_frozen(scene))


class Part(StrEnum):
    """What of a PostgreSQL is frozen."""

    ALL = "the whole PostgreSQL"
    POSTMASTER = "the postmaster alone"


@dataclass(frozen=True, slots=True)
class FreezeDatabase(Action):
    """SIGSTOP of a node's PostgreSQL, or of its postmaster alone; its agent lives."""

    role: Role
    part: Part

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"SIGSTOP of {self.part} of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        postmaster = scene.hosted.postmaster(await scene.node(self.role))
        if postmaster is None or not postmaster.send(signal.SIGSTOP):
            raise NotInjected("no postmaster runs there")
        stopped = [postmaster]
        if self.part is Part.ALL:
            children = await asyncio.to_thread(descendants_of, postmaster.pid)
            stopped += [p for p in map(Process.of, children) if p is not None and p.send(signal.SIGSTOP)]
        await _freeze(scene, Frozen(tuple(stopped)))

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return await must_be_stopped(_frozen(scene))


async def _freeze(scene: Scene, frozen: Frozen) -> None:
    scene.keep("frozen", Frozen(_frozen(scene) + frozen.processes))

    async def thaw() -> None:
        frozen.thaw()

    scene.undo.append(thaw)


def _frozen(scene: Scene) -> tuple[Process, ...]:
    frozen = scene.kept.get("frozen")
    return frozen.processes if isinstance(frozen, Frozen) else ()


@dataclass(frozen=True, slots=True)
class Thaw(Action):
    """SIGCONT of everything that was frozen."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "SIGCONT of all that was frozen"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        for process in _frozen(scene):
            process.send(signal.SIGCONT)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        frozen = _frozen(scene)
        return f"{sum(process.is_alive() for process in frozen)} of {len(frozen)} frozen processes were still there"


class Which(StrEnum):
    """A supervised process."""

    AGENT = "the agent"
    STORE = "the store member"
    PROXY = "the proxy"


@dataclass(frozen=True, slots=True)
class KillProcess(Action):
    """SIGKILL of one supervised process, which its supervisor starts again."""

    which: Which
    role: Role = Role.PRIMARY

    @property
    def words(self) -> str:
        """See `Action`."""
        if self.which is Which.PROXY:
            return "SIGKILL of one of two proxies"
        return f"SIGKILL of {self.which} of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        process = await _supervised(scene, self.which, self.role)
        if not process.send(signal.SIGKILL):
            raise NotInjected(f"{self.which} did not run")
        scene.keep("killed", process)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        killed = scene.kept["killed"]
        if not isinstance(killed, Process) or not await asyncio.to_thread(killed.wait, 2.0):
            raise NotInjected("the process lives")
        return f"process {killed.pid} is gone"


@dataclass(frozen=True, slots=True)
class FreezeProcess(Action):
    """SIGSTOP of one supervised process: it is there, takes connections, and answers nothing."""

    which: Which
    role: Role = Role.PRIMARY

    @property
    def words(self) -> str:
        """See `Action`."""
        if self.which is Which.PROXY:
            return "SIGSTOP of one of two proxies"
        return f"SIGSTOP of {self.which} of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        process = await _supervised(scene, self.which, self.role)
        if not process.send(signal.SIGSTOP):
            raise NotInjected(f"{self.which} did not run")
        await _freeze(scene, Frozen((process,)))

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return await must_be_stopped(_frozen(scene))


async def _supervised(scene: Scene, which: Which, role: Role) -> Process:
    cluster = scene.hosted
    if which is Which.PROXY:
        process = cluster.proxy(cluster.file.proxies[0])
    else:
        node = await scene.node(role)
        process = cluster.agent(node) if which is Which.AGENT else cluster.store_member(node)
    if process is None:
        raise NotInjected(f"{which} did not run")
    return process


@dataclass(frozen=True, slots=True)
class KillCandidate(Action):
    """Waits until a candidate promotes, and takes the power of its host in that moment."""

    within_s: float = 20.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return "power loss of the candidate's host while it promotes"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        give_up_at = time.monotonic() + self.within_s
        while time.monotonic() < give_up_at:
            try:
                register = await scene.register()
            except StoreUnavailable:
                continue
            if register.phase is Phase.PROMOTING and register.candidate is not None:
                node = register.candidate.node
                scene.hosted.hosts[node].cut()
                await asyncio.to_thread(scene.hosted.kill_host, node)
                scene.keep("second host", node)
                return
            if register.epoch > scene.epoch_before and register.phase is Phase.SERVING:
                break
            await asyncio.sleep(0)
        raise NotInjected("the candidate had promoted before it could be killed")

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return await must_be("silence", *_postgres_at(scene, str(scene.kept["second host"])))


@dataclass(frozen=True, slots=True)
class Boot(Action):
    """Power for the host of a role."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the host of {self.role} boots again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await asyncio.to_thread(scene.hosted.power_on, await scene.node(self.role))


@dataclass(frozen=True, slots=True)
class BootAll(Action):
    """Every host that is down boots."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "every lost host boots again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        for node, host in scene.hosted.hosts.items():
            if not host.processes():
                await asyncio.to_thread(host.mend)
                await asyncio.to_thread(scene.hosted.power_on, node)


@dataclass(frozen=True, slots=True)
class WaitUntilWhole(Action):
    """Waits until the cluster is whole, for drills of several parts."""

    within_s: float = 60.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return "wait until the cluster is whole"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        if not await scene.cluster.wait_until_whole(self.within_s):
            raise NotInjected(f"the cluster was not whole within {self.within_s:g} s between two parts of the drill")


@dataclass(frozen=True, slots=True)
class WaitUntilMembersAre(Action):
    """Waits until the committed quorum has so many members."""

    count: int
    within_s: float = 30.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"wait until the quorum is down to {self.count}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""

        async def reached() -> bool:
            try:
                return len((await scene.register()).committed.quorum.members) == self.count
            except StoreUnavailable:
                return False

        if not await until(reached, self.within_s, every_s=0.1):
            raise NotInjected(f"the quorum did not come to {self.count} members within {self.within_s:g} s")
