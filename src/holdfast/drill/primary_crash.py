"""The drill *primary-crash*: under load, SIGKILL the primary's whole PostgreSQL; nothing acknowledged may be lost.

The one drill that needs no hosts of its own: ``holdfast demo`` runs it on this machine's loopback.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from holdfast.drill.cluster import ClusterUnderTest
from holdfast.drill.observer import Observer
from holdfast.drill.result import DrillResult
from holdfast.drill.runner import DrillOptions, run_drill
from holdfast.drill.scenario import Action, Drill, Expectation, Load, Role, Scene, Step

NAME = "primary-crash"
TITLE = "The primary's PostgreSQL is killed under load"
DEMO_LOAD = Load(fresh_readers=0, long_writers=0, idle=100)
"""What a person sees in the first minute: the plain clients."""


@dataclass(frozen=True, slots=True)
class KillPostgres(Action):
    """SIGKILL a node's whole PostgreSQL; its agent lives."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"kill -9 of the whole PostgreSQL of {self.role}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        scene.keep("fault_at_ms", await scene.cluster.kill_postgres(await scene.node(self.role)))

    async def proof(self, scene: Scene) -> str:
        """`ClusterUnderTest.kill_postgres` holds every process when it signals it, and refuses if there is none."""
        return "its processes were held, and took SIGKILL"


PRIMARY_CRASH = Drill(
    name=NAME,
    title=TITLE,
    proves="a primary whose PostgreSQL dies is replaced in about a second, and nothing acknowledged is lost",
    steps=(Step(KillPostgres(Role.PRIMARY)),),
    expect=Expectation(failover=True, stall_ms=1000, worst_stall_ms=5000),
    scenarios=("A1", "A3", "A12", "A16"),
)

_DEMO = replace(PRIMARY_CRASH, load=DEMO_LOAD, watch_s=0.0, expect=Expectation(True, 1000, worst_stall_ms=inf))


async def run_primary_crash(
    cluster: ClusterUnderTest, options: DrillOptions, observer: Observer, load: Load = DEMO_LOAD
) -> DrillResult:
    """Run the drill once on any cluster; raises HoldfastError if it could not be tried (then nothing was killed)."""
    return await run_drill(replace(_DEMO, load=load), cluster, options, observer)
