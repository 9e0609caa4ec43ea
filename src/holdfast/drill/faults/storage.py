"""Disks that stall, fill up or come back empty."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from holdfast.drill.scenario import Action, NotInjected, Role, Scene
from holdfast.drill.volumes import FrozenVolume, fill, free, is_full
from holdfast.local import layout as rooms
from holdfast.local import machine


@dataclass(frozen=True, slots=True)
class StallStorage(Action):
    """The file system of a node takes no write; whoever tries hangs in the kernel."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the file system of {self.role} takes no write any more"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        place = scene.hosted.layout.node(await scene.node(self.role))
        frozen = await asyncio.to_thread(FrozenVolume, place)
        scene.keep("volume", frozen)
        scene.keep("place", place)

        async def thaw() -> None:
            await asyncio.to_thread(frozen.thaw)

        scene.undo.append(thaw)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        writer = await asyncio.create_subprocess_exec("touch", str(Path(str(scene.kept["place"])) / "probe"))
        try:
            async with asyncio.timeout(0.5):
                await writer.wait()
        except TimeoutError:
            return "a process that touches a file there does not come back"
        raise NotInjected("a write on the frozen file system came back")


@dataclass(frozen=True, slots=True)
class ThawStorage(Action):
    """It takes writes again."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the file system takes writes again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        volume = scene.kept["volume"]
        assert isinstance(volume, FrozenVolume)
        await asyncio.to_thread(volume.thaw)


@dataclass(frozen=True, slots=True)
class FillDisk(Action):
    """Not a byte is free any more on the file systems of these nodes."""

    roles: tuple[Role, ...]

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the disk of {' and of '.join(self.roles)} is full"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        places = [scene.hosted.layout.node(await scene.node(role)) for role in self.roles]
        scene.keep("places", places)
        for place in places:
            await asyncio.to_thread(fill, place)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        places = _places(scene)
        # What PostgreSQL frees is taken by it again: one page is all that is asked for.
        full = [place.name for place in places if await asyncio.to_thread(is_full, place)]
        if not full:
            raise NotInjected(f"there is room on {', '.join(place.name for place in places)}")
        return f"a page more does not fit on {', '.join(full)}"


@dataclass(frozen=True, slots=True)
class FreeDisk(Action):
    """Somebody makes room."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "somebody makes room"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        for place in _places(scene):
            await asyncio.to_thread(free, place)


def _places(scene: Scene) -> list[Path]:
    places = scene.kept.get("places")
    return [place for place in places if isinstance(place, Path)] if isinstance(places, list) else []


@dataclass(frozen=True, slots=True)
class LoseDisk(Action):
    """The lost host gets a new, empty disk: data directory and promise are gone."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the lost host gets an empty disk"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        cluster, node = scene.hosted, str(scene.kept["host"])
        place = cluster.layout.node(node)
        await asyncio.to_thread(shutil.rmtree, place)
        owner = machine.owner_ids(cluster.file.os_user)
        rooms.make_node_directories(cluster.layout, cluster.file, node, owner)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        if scene.hosted.layout.data_dir(str(scene.kept["host"])).exists():
            raise NotInjected("the data directory is still there")
        return "no data directory is there"
