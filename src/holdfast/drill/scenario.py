"""A drill as a value: what is broken, step by step, under which load, and what must come of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from holdfast.drill.cluster import ClusterUnderTest
from holdfast.drill.workload import RATE_PER_S, Workload
from holdfast.model.errors import HoldfastError
from holdfast.model.register import Phase, Register

if TYPE_CHECKING:
    from holdfast.drill.hosted import HostedCluster
    from holdfast.drill.volumes import Volume


class NotInjected(HoldfastError):
    """The fault was not there: the drill was not run, and proves nothing."""


class Role(StrEnum):
    """Which of the nodes a step is about."""

    PRIMARY = "the primary"
    """That of the beginning."""
    STANDBY = "a standby"
    OTHER_STANDBY = "the other standby"
    CANDIDATE = "the candidate"
    """Of the epoch that is promoting now."""
    LEADER = "the new primary"
    """Who leads now."""
    STORE_LEADER = "the node beside the store's leader"


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do meanwhile. Long writers keep each transaction open for ``long_ms``."""

    writers: int = 8
    readers: int = 2
    fresh_readers: int = 2
    long_writers: int = 2
    long_ms: float = 700.0
    idle: int = 200
    rate_per_s: float = RATE_PER_S
    ledgers: int = 0
    """Clients that keep books: transactions of every kind, whose rows are looked for among the lost ones."""
    lowered: bool = False
    """Whether steps add sessions with a lower synchronous_commit, whose losses are their own choice."""


LOWERED_WRITER = 800
DIRECT_WRITER = 900
"""Numbers of writers that steps add: with a lower synchronous_commit, and past the proxy."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must be seen. ``failover`` None: either is right. Stalls: the median to aim at, and the worst allowed."""

    failover: bool | None
    stall_ms: float
    worst_stall_ms: float
    errors: bool = True
    """Whether clients may be told of errors, unknown outcomes or lost connections."""
    whole: bool = True
    """Whether the cluster must be whole again by itself."""
    resumes: bool = True
    """Whether writing must go on before the load is stopped."""
    may_lose: bool = False
    """Whether acknowledged rows may be missing, if they are counted."""


@dataclass(slots=True)
class Scene:
    """What the steps of one run work on. ``undo`` holds what must be put back, whatever happens; last in, first out."""

    cluster: ClusterUnderTest
    workload: Workload
    primary: str
    standbys: tuple[str, ...]
    epoch_before: int
    now_ms: Callable[[], float]
    note: Callable[[str], None]
    problem: Callable[[str], None]
    """Tells of something that the product must not do, and did."""
    undo: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    kept: dict[str, object] = field(default_factory=dict)
    """What one step leaves for a later one."""

    @property
    def hosted(self) -> HostedCluster:
        """The cluster, if it has hosts of its own; raises NotInjected."""
        from holdfast.drill.hosted import HostedCluster

        if not isinstance(self.cluster, HostedCluster):
            raise NotInjected("this drill needs hosts of its own: run it without --on loopback and without --dir")
        return self.cluster

    async def register(self) -> Register:
        """The register; raises StoreUnavailable, HoldfastError."""
        register = await self.cluster.register()
        if register is None:
            raise HoldfastError("the store holds no register")
        return register

    async def node(self, role: Role) -> str:
        """The node that has a role now; raises NotInjected if nobody has it."""
        if role is Role.PRIMARY:
            return self.primary
        if role is Role.STANDBY:
            return self.standbys[0]
        if role is Role.OTHER_STANDBY:
            return self.standbys[1]
        if role is Role.STORE_LEADER:
            leader = await self.hosted.store_leader()
            if leader is None:
                raise NotInjected("the store has no leader")
            return leader
        register = await self.register()
        if role is Role.CANDIDATE:
            if register.phase is not Phase.PROMOTING or register.candidate is None:
                raise NotInjected("no candidate is promoting")
            return register.candidate.node
        return register.committed.leader.node

    def keep(self, name: str, value: object) -> None:
        """Leave something for a later step."""
        self.kept[name] = value


class Action(ABC):
    """One thing done to the cluster, with the proof from outside that it took effect."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it does, as the rest of a sentence: ``SIGKILL every process of the primary's host``."""

    @abstractmethod
    async def perform(self, scene: Scene) -> None:
        """Do it; raises NotInjected if it cannot be done. Time spent here counts as the injection."""

    async def proof(self, scene: Scene) -> str:
        """What was seen from outside; raises NotInjected if it was not. For steps that are no fault: nothing."""
        return ""


@dataclass(frozen=True, slots=True)
class Step:
    """An action, some time after the one before it."""

    action: Action
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill. The clock of the figures starts with the first of ``steps``; ``prepare`` comes before, under load.

    After the last step the runner waits for the new primary if one is expected, lets the load go on, does ``heal``,
    and waits until the cluster is whole.
    """

    name: str
    title: str
    proves: str
    steps: tuple[Step, ...]
    expect: Expectation
    prepare: tuple[Step, ...] = ()
    heal: tuple[Step, ...] = ()
    load: Load = Load()
    parameters: tuple[tuple[str, str], ...] = ()
    """PostgreSQL settings that differ from the default."""
    is_quiet_before: bool = False
    """Whether ``prepare`` ends with writes that wait: the fault follows at once."""
    volumes: tuple[tuple[str, Volume], ...] = ()
    """Nodes whose directory is a file system of its own; the primary is the first node, and the only one that leads."""
    watch_s: float = 3.0
    """Load between the last step (or the new primary) and the first of ``heal``."""
    scenarios: tuple[str, ...] = ()
    """Ids of what the product promises to survive."""

    @property
    def fault(self) -> str:
        """What is broken, as the rest of a sentence."""
        return self.steps[0].action.words

    def fault_at(self, primary: str) -> str:
        """The same with the name of the primary."""
        return self.fault.replace(Role.PRIMARY, primary)

    @property
    def lasts_s(self) -> float:
        """How long a run takes at least; for estimates."""
        pauses = sum(step.after_s for step in (*self.prepare, *self.steps, *self.heal))
        return pauses + self.watch_s
