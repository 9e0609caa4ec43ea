"""A store that is away, loses its leader, or comes back from a backup."""

from __future__ import annotations

import asyncio
import shutil
import signal
from dataclasses import dataclass

from holdfast.drill.probes import must_be
from holdfast.drill.scenario import Action, NotInjected, Role, Scene


def _members(scene: Scene, *, leader: str | None) -> list[str]:
    return [leader] if leader is not None else list(scene.hosted.nodes)


async def _stop_members(scene: Scene, names: list[str]) -> None:
    """Kill members of the store, and keep their supervisors from starting them again."""
    cluster = scene.hosted

    async def start() -> None:
        for name in names:
            if (supervisor := cluster.supervisor(name)) is not None:
                supervisor.send(signal.SIGCONT)

    scene.undo.append(start)
    for name in names:
        supervisor, member = cluster.supervisor(name), cluster.store_member(name)
        if supervisor is None or member is None:
            raise NotInjected(f"no member of the store runs on {name}")
        supervisor.send(signal.SIGSTOP)
        member.send(signal.SIGKILL)
    scene.keep("stopped members", names)


@dataclass(frozen=True, slots=True)
class StopStore(Action):
    """Every member of the store is killed, or its leader alone, and stays away."""

    leader_only: bool = False

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"SIGKILL of {'the leader' if self.leader_only else 'every member'} of the store, which stays away"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        leader = await scene.node(Role.STORE_LEADER) if self.leader_only else None
        await _stop_members(scene, _members(scene, leader=leader))

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        file, names = scene.hosted.file, _names(scene)
        return "; ".join([await must_be("refused", file.address(name), file.ports.etcd_client) for name in names])


def _names(scene: Scene) -> list[str]:
    names = scene.kept.get("stopped members")
    return [str(name) for name in names] if isinstance(names, list) else []


@dataclass(frozen=True, slots=True)
class StartStore(Action):
    """Its members come back."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the store comes back"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        for name in _names(scene):
            if (supervisor := scene.hosted.supervisor(name)) is not None:
                supervisor.send(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class BackUpStore(Action):
    """A copy of the store's data, taken while it is stopped for a moment."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "a backup of the store is taken"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await _stop_members(scene, list(scene.hosted.nodes))
        await asyncio.sleep(0.2)
        for name in scene.hosted.nodes:
            directory = scene.hosted.store_dir(name)
            await asyncio.to_thread(_copy, directory / "data", directory / "backup")
        await StartStore().perform(scene)


@dataclass(frozen=True, slots=True)
class RestoreStore(Action):
    """The store is put back to the backup: all that was written since is forgotten."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the store is restored from the backup"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        scene.keep("epoch before the restore", (await scene.register()).epoch)
        await _stop_members(scene, list(scene.hosted.nodes))
        await asyncio.sleep(0.2)
        for name in scene.hosted.nodes:
            directory = scene.hosted.store_dir(name)
            await asyncio.to_thread(shutil.rmtree, directory / "data")
            await asyncio.to_thread(_copy, directory / "backup", directory / "data")
        await StartStore().perform(scene)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        await asyncio.sleep(3.0)
        epoch, now = scene.kept["epoch before the restore"], (await scene.register()).epoch
        if now == epoch:
            raise NotInjected(f"the register still says epoch {now}: nothing was forgotten")
        return f"the register says epoch {now}; it was {epoch}"


def _copy(source: object, target: object) -> None:
    # A real copy that keeps owners, which shutil does not.
    import subprocess

    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
