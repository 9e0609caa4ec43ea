"""How a run ends: whether the cluster serves again, whether it could, and if not, whether it says why."""

from __future__ import annotations

from collections.abc import Collection

from holdfast.core.forecast import Standing
from holdfast.core.impasse import impasse, uncreated
from holdfast.core.obstacle import Obstacle
from holdfast.core.quorum import recruits_suffice
from holdfast.model.register import Member, Register
from holdfast.model.server import ServerStatus
from holdfast.testing.world import World


class Ending:
    """What the world itself knows, to be held against what the cluster does and says."""

    def __init__(self, world: World, *, from_nothing: bool) -> None:
        self._world = world
        self._from_nothing = from_nothing

    def missing(self) -> str | None:
        """What is missing until everything is as it should be; None if nothing is."""
        world = self._world
        register = world.store.register()
        if register is None or register.leader is None:
            return "no primary serves"
        if world.checks.newest_begun_s < (world.quiet_since_s or 0.0):
            return "no write was acknowledged"
        leader = world.servers[register.leader.node]
        members = {m.node: m for m in sorted(register.committed.quorum.members)}  # the newest directory of each
        streaming = {s.name for s in leader.senders if s.caught_up}
        for name, host in world.hosts.items():
            if host.lost or name == register.leader.node:
                continue
            member = members.get(name)
            if member is None:
                return f"{name} is no member"
            if member.application_name not in streaming:
                return f"{name} does not stream"
        if leader.status is not ServerStatus.PRIMARY:
            return "the leader is no primary"
        return None

    def is_tolerable(self, back: Collection[str] = ()) -> bool:
        """Whether what is left suffices: enough of those who may hold acknowledged writes, and two nodes at all; one,
        if policy lets it acknowledge alone.

        ``back``: the nodes that are supposed to be back with what they had.
        """
        world = self._world
        register: Register | None = world.checks.register
        alive = {name: host for name, host in world.hosts.items() if not host.lost or name in back}
        voters = [name for name, machine in world.machines.items() if not machine.lost or name in back]
        least = 1 if world.store.policy().local_commits_allowed else 2
        if register is None:
            return self._from_nothing and "n1" in alive and len(alive) >= least
        if world.checks.restored:
            return False
        counted_on = register.committed.quorum.members | {register.committed.leader}
        there = {member for host in alive.values() if (member := host.member()) is not None}
        there |= {m for m in counted_on if m.node in back}
        if register.epoch == 1 and register.candidate is not None:
            return (register.candidate in there or register.candidate.node in back) and len(alive) >= least
        fit = there & counted_on
        again = register.candidate if register.candidate == register.committed.leader else None
        if register.leader in fit or again in fit:
            return len(alive) >= least  # it has everything, and whoever is left can be made over to follow it
        if len(voters) <= len(register.voters) // 2:
            return False  # no majority can find that the leader is lost
        return recruits_suffice(register.committed, fit) and len(fit) >= least

    def unsaid(self) -> str | None:
        """What is wrong with what people are told of a cluster that cannot go on; None if it is the truth.

        It is what ``holdfast status`` prints: an alarm, or why writes wait, which nodes are missing for that, and what
        to do. If those nodes came back, the cluster would go on; and they are missing indeed.
        """
        world = self._world
        if all(report is None for report in world.reports().values()):
            return None  # nobody is left who could say anything
        found = self._found()
        if world.checks.restored:
            return None if self.why() else "the store was restored, and nobody raises an alarm"
        if found is None:
            return "nobody says why"
        well = [name for name in found.away if not self._is_away(name)]
        if well:
            return f"{' and '.join(well)} said to be missing, and not so: {found}"
        if not self.is_tolerable(found.away):
            return f"more is missing than is said: {found}"
        return None

    def why(self) -> str:
        """What people are told: as ``holdfast status`` does."""
        alarms: dict[str, list[str]] = {}
        for report in self._world.reports().values():
            if report is not None and report.alarm is not None:
                alarms.setdefault(report.alarm, []).append(report.node)
        found = self._found()
        said = [f"ALARM {', '.join(nodes)}: {alarm}" for alarm, nodes in alarms.items()]
        return "; ".join((*said, *((str(found),) if found is not None else ())))

    def _found(self) -> Obstacle | None:
        world = self._world
        register, reports = world.store.register(), world.reports()
        if register is None:
            return uncreated(reports)
        return impasse(Standing(register, reports, world.store.policy(), lease=world.store.lease()))

    def _is_away(self, name: str) -> bool:
        register: Register | None = self._world.checks.register
        host = self._world.hosts.get(name)
        if host is None:
            return self._world.machines[name].voter is None
        if host.lost or host.agent is None or register is None:
            return True
        counted_on: set[Member] = {*register.committed.quorum.members, register.committed.leader}
        return host.member() not in counted_on
