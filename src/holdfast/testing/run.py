"""One run: a plan is carried out, everything is checked, and in the end the cluster must serve again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from holdfast.model.timeouts import Timeouts
from holdfast.testing.checks import LIVENESS, SILENT, SPINS, Violation
from holdfast.testing.clients import DirectClient, Proxy
from holdfast.testing.ending import Ending
from holdfast.testing.faults import KINDS, Fault, Undo
from holdfast.testing.loop import Spinning
from holdfast.testing.plan import Plan
from holdfast.testing.timeouts import SIMULATED
from holdfast.testing.wiring import Wiring
from holdfast.testing.world import Note, World

LIVENESS_BOUND_MS = 90_000
"""How long after the last fault everybody must be back: several replaced epochs with doubled time-outs fit in it."""

SAYING_BOUND_MS = 30_000
"""How long after the last fault a cluster that cannot go on must say why: longer than any phase lasts."""

_HOPELESS_MS = 4000
"""How long a cluster that has lost too much is watched: it must do no harm either."""

_LOOK_MS = 250
_SAMPLE_MS = 200


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    plan: Plan
    steps: int
    simulated_ms: float
    failovers: int
    writes: int
    acknowledged: int
    recovered: bool
    """Whether it serves again; otherwise too much was lost, or a property was violated."""
    violation: Violation | None
    timeline: tuple[Note, ...]

    @property
    def digest(self) -> str:
        """A hash of everything that happened."""
        return hashlib.sha256("\n".join(map(str, self.timeline)).encode()).hexdigest()[:16]


def run(plan: Plan, wiring: Wiring | None = None, timeouts: Timeouts = SIMULATED) -> Result:
    """Carry a plan out; deterministic."""
    wiring = wiring if wiring is not None else Wiring()
    with wiring.in_force():
        return _Run(plan, wiring, timeouts).carry_out()


class _Run:
    def __init__(self, plan: Plan, wiring: Wiring, timeouts: Timeouts) -> None:
        self._plan = plan
        self._world = world = World(plan.seed, plan.nodes, timeouts, wiring, plan.witnesses)
        world.checks.able_now = world.able_now
        world.checks.kept_now = world.kept_now
        world.checks.local_allowed = lambda: world.store.policy().local_commits_allowed
        world.proxies["p1"] = Proxy("p1", world)
        self._ending = Ending(world, from_nothing=plan.from_nothing)
        self._recovered = False
        self._violation: Violation | None = None

    def carry_out(self) -> Result:
        world, plan = self._world, self._plan
        loop = world.loop
        loop.after(0, self._begin)
        loop.after(_SAMPLE_MS, self._sample)
        for fault in plan.faults:
            loop.after(fault.at_ms, self._strike, fault)
        ends_ms = [fault.at_ms + (fault.for_ms or 0) for fault in plan.faults]
        loop.after(max(ends_ms, default=0) + 1, self._calm)
        try:
            loop.run_until(3600.0)
        except (Violation, Spinning) as found:
            self._violation = found if isinstance(found, Violation) else Violation(SPINS, str(found))
            world.note("checks", str(self._violation))
        finally:
            loop.end()
        checks = world.checks
        return Result(
            plan=plan,
            steps=loop.steps,
            simulated_ms=loop.time() * 1000,
            failovers=world.failovers,
            writes=world.writes,
            acknowledged=len(checks.acknowledged_writes),
            recovered=self._recovered,
            violation=self._violation,
            timeline=tuple(world.timeline),
        )

    def _begin(self) -> None:
        world = self._world
        if self._plan.from_nothing:
            world.begin_from_nothing()
        else:
            world.populate()
        for proxy in world.proxies.values():
            proxy.start()
        DirectClient(world).start()

    def _sample(self) -> None:
        self._world.checks.sample()
        self._world.loop.after(_SAMPLE_MS, self._sample)

    def _strike(self, fault: Fault) -> None:
        world = self._world
        world.note("fault", " ".join((fault.kind, *fault.args)), {"for_ms": fault.for_ms})
        undo = KINDS[fault.kind](world, fault.args)
        if undo is not None and fault.for_ms is not None:
            world.loop.after(fault.for_ms, self._end, fault, undo)

    def _end(self, fault: Fault, undo: Undo) -> None:
        self._world.note("fault", " ".join(("over:", fault.kind, *fault.args)))
        undo()

    def _calm(self) -> None:
        """No fault is in force from here on but those that are for good."""
        world = self._world
        world.quiet_since_s = world.loop.time()
        world.note("fault", "no more")
        self._look()

    def _look(self) -> None:
        world = self._world
        assert world.quiet_since_s is not None
        quiet_ms = (world.loop.time() - world.quiet_since_s) * 1000
        missing = self._ending.missing()
        if missing is None:
            self._recovered = True
            world.note("checks", "everybody is back")
            world.loop.stopping = True
        elif not self._ending.is_tolerable():
            unsaid = self._ending.unsaid() if quiet_ms >= _HOPELESS_MS else "it is too early to say"
            if unsaid is None:
                world.note("checks", "too much was lost to go on, and nothing was harmed", {"missing": missing})
                world.note("status", self._ending.why() or "nothing: nobody is left to ask")
                world.loop.stopping = True
            elif quiet_ms >= SAYING_BOUND_MS:
                raise Violation(SILENT, f"{unsaid}, {SAYING_BOUND_MS // 1000} s after the last fault")
        elif quiet_ms >= LIVENESS_BOUND_MS:
            raise Violation(LIVENESS, f"{missing}, {LIVENESS_BOUND_MS // 1000} s after the last fault")
        if not world.loop.stopping:
            world.loop.after(_LOOK_MS, self._look)
