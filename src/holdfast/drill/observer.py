"""What a drill tells whoever watches it. Renderings are in ``progress``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from holdfast.drill.result import DrillResult
from holdfast.drill.workload import Counters
from holdfast.model.event import Event


class Step(StrEnum):
    """Where a drill stands. The value is what a person reads."""

    WAITING = "waiting until the cluster is whole"
    PREPARING = "preparing tables and sessions"
    WARM_UP = "warming up under load"
    FAULT = "injecting the fault"
    FAILING_OVER = "failing over"
    SETTLING = "serving again, load goes on"
    REJOINING = "waiting for the old primary to come back as a standby"
    CHECKING = "comparing every acknowledged row"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to be done, for the first lines of the display."""

    drill: str
    title: str
    cluster: str
    nodes: tuple[str, ...]
    primary: str
    durability: str
    writers: int
    readers: int
    idle: int
    rate_per_s: float
    seed: int
    variants: tuple[str, ...] = ()


class Observer(Protocol):
    """Called by the drill from its event loop; must return at once and never raise."""

    def begin(self, plan: Plan) -> None:
        """The cluster is whole and the drill is about to start."""

    def step(self, step: Step, detail: str = "") -> None:
        """The drill moved on."""

    def fault(self, at_ms: float, detail: str, epoch_before: int) -> None:
        """The fault was injected at this Unix time in milliseconds; the cluster was in that epoch."""

    def event(self, event: Event) -> None:
        """The cluster wrote this into its journal after the fault."""

    def first_write(self, at_ms: float) -> None:
        """The first write under the new primary was acknowledged at this Unix time in milliseconds."""

    def sample(self, counters: Counters) -> None:
        """The workload stands here; about ten times a second."""

    def end(self, result: DrillResult) -> None:
        """The drill is over."""

    def close(self) -> None:
        """Give the terminal back; called in any case, also after ``end``."""


class Silent:
    """An observer that shows nothing."""

    def begin(self, plan: Plan) -> None:
        """Nothing."""

    def step(self, step: Step, detail: str = "") -> None:
        """Nothing."""

    def fault(self, at_ms: float, detail: str, epoch_before: int) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""

    def first_write(self, at_ms: float) -> None:
        """Nothing."""

    def sample(self, counters: Counters) -> None:
        """Nothing."""

    def end(self, result: DrillResult) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
