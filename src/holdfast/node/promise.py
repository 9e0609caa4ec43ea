"""The promise: what an agent must remember across anything but the loss of its disk (docs/protocol.md, "State")."""

from __future__ import annotations

import secrets
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import ConfigurationError
from holdfast.model.register import RegisterAge
from holdfast.postgres.disk import Disk
from holdfast.postgres.files import write_durably

PROMISE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Promise:
    """The highest epoch joined, the cluster it belongs to, and the incarnation of the data directory it speaks for.

    ``incarnation`` is None while there is no directory to speak for (never cloned, or being rebuilt). ``generation`` is
    that of the newest register of this epoch that was written down here.
    """

    cluster: str
    cluster_id: str
    epoch: int
    incarnation: str | None
    generation: int = 0
    format: int = PROMISE_FORMAT


_PROMISE = TypeAdapter(Promise)


class Names:
    """Makes the names that must never meet again: random ones, unless a simulation makes its own."""

    def incarnation(self) -> str:
        """The name of a data directory made anew."""
        return secrets.token_hex(4)

    def cluster_id(self) -> str:
        """The identity of a new cluster."""
        return str(uuid.uuid4())


class PromiseKeeper(ABC):
    """The promise in force; where it is kept is a subclass's business."""

    current: Promise | None = None

    @abstractmethod
    def load(self, cluster: str) -> None:
        """Remember what was saved last, if anything was; raises ConfigurationError if it is another cluster's."""

    @abstractmethod
    async def save(self, promise: Promise) -> None:
        """Make it durable, then believe; raises PostgresError if the disk does not answer in time."""

    async def raise_to(self, epoch: int) -> None:
        """Promise never to follow a leader of a lower epoch again."""
        if self.current is None:
            raise ConfigurationError("node.state_dir: there is no promise to raise yet")
        if epoch > self.current.epoch:
            await self.save(replace(self.current, epoch=epoch, generation=0))

    async def remember(self, age: RegisterAge) -> None:
        """Obey no register older than this one any more, also after a restart."""
        if self.current is not None and age > (self.current.epoch, self.current.generation):
            epoch, generation = age
            await self.save(replace(self.current, epoch=epoch, generation=generation))

    async def speak_for(self, incarnation: str | None) -> None:
        """Speak for another data directory, or for none."""
        if self.current is not None and self.current.incarnation != incarnation:
            await self.save(replace(self.current, incarnation=incarnation))


class PromiseFile(PromiseKeeper):
    """The promise on disk: every change is fsynced before it is believed."""

    def __init__(self, state_dir: Path, disk: Disk, deadline_ms: int) -> None:
        self._path = state_dir / "promise.json"
        self._disk = disk
        self._deadline_ms = deadline_ms

    def load(self, cluster: str) -> None:
        """Read the file if there is one; raises ConfigurationError if it is another cluster's or cannot be read."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            promise = _PROMISE.validate_json(raw)
        except ValidationError as error:
            raise ConfigurationError(
                f"node.state_dir: {self._path} is damaged ({error.errors()[0]['msg']}); if it cannot be restored, "
                "remove it together with the data directory, and the node is cloned afresh"
            ) from error
        if promise.format > PROMISE_FORMAT:
            raise ConfigurationError(f"node.state_dir: {self._path} was written by a newer version: use that version")
        if promise.cluster != cluster:
            raise ConfigurationError(
                f"node.state_dir: {self._path} belongs to cluster {promise.cluster!r}, cluster.name says {cluster!r}: "
                "give this node a state_dir of its own"
            )
        self.current = promise

    async def save(self, promise: Promise) -> None:
        """Write and fsync, then believe. One at a time, so that a write that hung never ends after a later one."""
        write = partial(write_durably, self._path, _PROMISE.dump_json(promise), owner=None)
        await self._disk.call("promise", write, self._deadline_ms)
        self.current = promise
