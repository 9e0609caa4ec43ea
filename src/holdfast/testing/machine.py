"""A simulated machine: its power, and the process of the voter that runs on it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.register import Member
from holdfast.model.report import NodeReport
from holdfast.testing.checks import BUG, Violation
from holdfast.testing.loop import Process
from holdfast.testing.store import DistantStore

if TYPE_CHECKING:
    from holdfast.testing.world import World

_SUPERVISOR_MS = 1000.0


class Voter(Protocol):
    """What peers ask of a voter's process: an agent, or a witness."""

    def has_looked(self) -> bool: ...  # noqa: D102

    def report(self) -> NodeReport: ...  # noqa: D102

    def pledge(self, leader: Member, epoch: int) -> bool: ...  # noqa: D102


class Machine(ABC):
    """One voter's machine. The process of the voter comes and goes; a supervisor starts it again."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.up = True
        self.lost = False
        """Gone for good."""
        self.process: Process | None = None
        self.store: DistantStore | None = None
        """The way of the process to the store."""

    @property
    @abstractmethod
    def voter(self) -> Voter | None:
        """What runs in the process; None while there is none."""

    @abstractmethod
    def _begin(self, store: DistantStore, *, bootstrap: bool) -> Coroutine[Any, Any, None]:
        """Make the voter; what is returned is its life."""

    @abstractmethod
    def _forget(self) -> None:
        """The process is gone, and the voter with it."""

    # ---- the process ------------------------------------------------------------------------------------------

    def start_agent(self, *, bootstrap: bool = False) -> None:
        """Start the process, unless it runs or the machine is down."""
        if self.process is not None or not self.up:
            return
        self.process = process = Process(self.name)
        self.store = DistantStore(self.name, self.world.store)
        task = self.world.loop.spawn(process, self._begin(self.store, bootstrap=bootstrap))
        task.add_done_callback(lambda ended: self._ended(process, ended))

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        if not process.alive or self.process is not process:
            return
        error = None if task.cancelled() else task.exception()
        told = _first(error)
        if isinstance(told, Violation):
            raise told  # what the agent did was looked at while it did it
        if error is not None and not isinstance(told, ConfigurationError | EnvironmentFault):
            raise Violation(BUG, f"the agent of {self.name} ended with {type(told).__name__}: {told}") from error
        self.world.note(self.name, "agent ended", {"because": str(told)})
        self.kill_agent()
        self.world.loop.after(_SUPERVISOR_MS, self.start_agent)

    def kill_agent(self) -> None:
        """The process dies by SIGKILL; PostgreSQL, where there is one, runs on."""
        if self.process is not None:
            self.world.loop.kill(self.process)
            self.process = None
            self._forget()
        if self.store is not None:
            self.store.drop()

    # ---- the machine ------------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Everything stops."""
        self.kill_agent()
        self.up = False

    def power_on(self) -> None:
        """The machine is back, and a supervisor starts the process."""
        if not self.up and not self.lost:
            self.up = True
            self.start_agent()


def _first(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
