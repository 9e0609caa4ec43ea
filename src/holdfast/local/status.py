"""How a local cluster does, as one value: for people, for ``--json``, and for the exit status."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from holdfast.core.durability import is_local
from holdfast.core.forecast import Forecast, Standing, forecast
from holdfast.core.impasse import impasse, uncreated
from holdfast.core.membership import in_effect
from holdfast.core.quorum import Tolerance, tolerance
from holdfast.local.cluster import LocalCluster
from holdfast.local.ramp import read_proxy
from holdfast.local.switchover import planned
from holdfast.local.troubles import troubles_of
from holdfast.model.errors import HoldfastError, StoreUnavailable
from holdfast.model.plan import PlannedSwitchover
from holdfast.model.policy import DEFAULT_POLICY, Durability, Policy
from holdfast.model.register import NO_QUORUM, NodeRecord, Phase, Quorum, Register
from holdfast.model.report import NodeReport, Reading, VerdictKind
from holdfast.model.server import ServerStatus


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node. ``lag_bytes`` is how much of the primary's log it lacks; None if that cannot be told."""

    name: str
    role: str
    epoch: int | None
    position: str | None
    lag_bytes: int | None
    streaming: bool
    member: bool
    agent_alive: bool
    postgres_port: int
    alarm: str | None
    progress: str | None = None
    """What a copy or a rewind under way is doing, and how far it is."""
    isolated: str | None = None
    """Who is kept out of its PostgreSQL, and why, while it is cut off."""


@dataclass(frozen=True, slots=True)
class VoterStatus:
    """What one voter thinks of the primary. ``verdict`` is None if it does not answer or has nothing to judge."""

    name: str
    verdict: str | None
    evidence: str
    rule: str | None
    would_fail_over: bool
    readings: tuple[Reading, ...]
    about: str | None = None
    """The node that it judges."""

    @property
    def about_in_words(self) -> str:
        """Whom it judges."""
        return "itself" if self.about == self.name else self.about or "nobody"


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster. ``healthy``: a primary serves, every node takes part, the next loss is tolerated, and what
    dies is started again."""

    directory: str
    running: bool
    """Whether any process of it runs."""
    supervised: bool
    """Whether what dies is started again."""
    store_reachable: bool
    epoch: int | None
    phase: str | None
    primary: str | None
    primary_lost: str | None
    """As what enough voters hold the primary for lost; nobody has taken over yet then."""
    durability: str | None
    """What an acknowledged commit has survived now, in words."""
    quorum: str | None
    paused: bool
    unread: tuple[str, ...]
    """Nodes that policy lets nobody read from."""
    waiting: str | None
    """Why writes wait, or what a failover waits for, and what people can do about it."""
    tolerates_primary: bool
    tolerates_standbys: int
    tolerates: str
    write_address: str
    read_address: str
    healthy: bool
    nodes: tuple[NodeStatus, ...]
    voters: tuple[VoterStatus, ...]
    votes_needed: int
    planned_switchover: PlannedSwitchover | None
    obstacles: tuple[str, ...]
    """What would stand in the way if the primary died now, or keeps the cluster from tolerating more."""
    held_back: tuple[str, ...]
    """What the proxy keeps from servers now, for their protection and that of its clients."""
    troubles: tuple[str, ...]
    """Last words of processes that keep ending, and of nodes that do not come to take part."""

    def to_dict(self) -> dict[str, Any]:
        """The object that ``status --json`` prints."""
        return asdict(self)


async def read_status(cluster: LocalCluster) -> ClusterStatus:
    """Ask the store and every agent; never raises because one of them does not answer."""
    register: Register | None = None
    records: dict[str, NodeRecord] = {}
    policy, plan, lease = DEFAULT_POLICY, None, None
    reachable = True
    supervised = cluster.state().is_alive
    running = supervised or cluster.has_leftovers()
    reports = await cluster.voter_reports()  # before the store is asked: waiting for a silent one takes a while
    try:
        if running:
            register = await cluster.register()
            records = await cluster.node_records()
            policy, plan, lease = await cluster.policy(), await planned(cluster), await cluster.lease()
    except StoreUnavailable:
        reachable = False
    ports = cluster.file.ports
    nodes = tuple(_node(n, records.get(n), register, reports, ports.nodes[n].postgres) for n in cluster.nodes)
    leader = register.leader if register else None
    voters = register.voters if register else cluster.nodes
    standing = Standing(register, reports, policy, lease=lease) if register else None
    outlook = forecast(standing) if standing else None
    tolerated = _tolerance(register, reports, outlook, policy)
    quorum = register.committed.quorum if register else None
    may_lose = policy.maximum_lag_bytes if quorum and is_local(quorum) else None
    whole = leader is not None and all((n.streaming and n.isolated is None) or n.name == leader.node for n in nodes)
    return ClusterStatus(
        directory=str(cluster.layout.root),
        running=running,
        supervised=supervised,
        store_reachable=running and reachable,
        epoch=register.epoch if register else None,
        phase=register.phase.value if register else None,
        primary=leader.node if leader else None,
        primary_lost=outlook.primary_lost if outlook is not None else None,
        durability=durability_in_words(policy, quorum) if quorum else None,
        quorum=str(quorum) if quorum else None,
        paused=policy.paused,
        unread=tuple(name for name in cluster.nodes if not policy.readable(name)),
        waiting=_waiting(standing, reports, store=reachable) if running else None,
        tolerates_primary=tolerated.primary,
        tolerates_standbys=tolerated.standbys,
        tolerates=_tolerates(register, outlook, tolerated, may_lose, policy, reports, running, reachable),
        write_address=f"127.0.0.1:{ports.write}",
        read_address=f"127.0.0.1:{ports.read}",
        healthy=supervised
        and reachable
        and whole
        and not policy.paused
        and tolerated.standbys >= 1
        and (tolerated.primary or policy.durability is Durability.ASYNCHRONOUS),
        nodes=nodes,
        voters=tuple(_voter(name, reports.get(name)) for name in voters) if running else (),
        votes_needed=len(voters) // 2 + 1,
        planned_switchover=plan,
        obstacles=outlook.if_primary_died.obstacles if outlook is not None and outlook.primary is not None else (),
        held_back=await _held_back(cluster) if running else (),
        troubles=(*map(str, await troubles_of(cluster, reports)), *_sickness(reports)) if running else (),
    )


async def _held_back(cluster: LocalCluster) -> tuple[str, ...]:
    try:
        said = await read_proxy(cluster)
    except HoldfastError:
        return ()  # that it does not answer is told elsewhere
    probed = (
        f"the proxy only probes {b['node']}, for {b['since_ms'] / 1000:.1f} s now: "
        f"{b['failures']} connections in a row came to nothing"
        for b in said["breakers"]
        if b["since_ms"] is not None
    )
    suspected = (
        f"QUARANTINE {s['id']} ({s['standing']}; {s['inside']} run, {s['waiting']} wait, {s['refused']} refused): "
        f"{s['statement']}"
        for s in said["quarantine"]
    )
    behind = (
        f"nobody reads from {s['node']} through the proxy: it is {_so_far(s['lag_ms'])} behind"
        for s in said["reads"]["standbys"]
        if s["replayed"] is not None and not s["read_from"] and s["left"]
    )
    return *probed, *suspected, *behind


def _so_far(lag_ms: int | None) -> str:
    return "too far" if lag_ms is None else f"{lag_ms / 1000:.1f} s"


def _waiting(standing: Standing | None, reports: dict[str, NodeReport | None], *, store: bool) -> str | None:
    """Why writes wait, or what a failover waits for."""
    waited = [r for r in reports.values() if r is not None and r.waiting is not None]
    found = impasse(standing) if standing is not None else uncreated(reports) if store else None
    words = str(found) if found is not None else waited[0].waiting if waited else None
    longest_ms = max((r.waiting_ms or 0 for r in waited), default=0)
    return f"{words} (for {longest_ms // 1000} s so far)" if words is not None and longest_ms >= 1000 else words


def _sickness(reports: dict[str, NodeReport | None]) -> list[str]:
    """What is wrong with the primary that no failover would mend: people have to."""
    held = [r.verdict for r in reports.values() if r is not None and r.verdict is not None]
    found = {v.kind: v for v in held if not v.calls_for_failover and v.kind in _FOR_PEOPLE}
    return [f"ALARM {v.about.node}: {v.kind.value}: {v.evidence}; {_FOR_PEOPLE[v.kind]}" for v in found.values()]


_FOR_PEOPLE = {
    VerdictKind.DISK_FULL: "free some space: no standby is known to have room on another disk",
    VerdictKind.STANDBYS_AT_FAULT: "writes wait for them: look at the standbys",
}


def _voter(name: str, report: NodeReport | None) -> VoterStatus:
    if report is None:
        return VoterStatus(name, None, "its agent does not answer, so it has no vote now", None, False, ())
    verdict = report.verdict
    if verdict is None:
        return VoterStatus(name, None, "nobody leads whom it could judge", None, False, ())
    return VoterStatus(
        name,
        verdict.kind.value,
        verdict.evidence,
        verdict.rule,
        verdict.calls_for_failover,
        verdict.readings,
        verdict.about.node,
    )


def _tolerance(
    register: Register | None, reports: dict[str, NodeReport | None], outlook: Forecast | None, policy: Policy
) -> Tolerance:
    streaming = [r.member for r in reports.values() if r is not None and r.streaming and r.member is not None]
    if register is None:
        names = [r.synchronous_names for r in reports.values() if r is not None and r.status is ServerStatus.PRIMARY]
        quorum = in_effect(names[0]) if names else None
        return replace(tolerance(quorum or NO_QUORUM, streaming), primary=False)
    if register.phase is not Phase.SERVING:
        return Tolerance(primary=False, standbys=0)
    found = tolerance(register.committed.quorum, streaming, may_degrade=policy.local_commits_allowed)
    nobody = outlook is not None and outlook.if_primary_died.candidate is None
    return replace(found, primary=False) if nobody else found


def durability_in_words(policy: Policy, quorum: Quorum) -> str:
    """What an acknowledged commit has survived now."""
    members = ", ".join(sorted(m.node for m in quorum.members)) or "nobody"
    if not is_local(quorum):
        return f"{policy.durability.value}: each commit is confirmed by {quorum.k} of {members}"
    if policy.durability is Durability.ASYNCHRONOUS:
        return f"asynchronous: commits are on the primary only; {members} follow"
    return f"{policy.durability.value}, but commits are on the primary only until a standby is back"


def _tolerates(
    register: Register | None,
    outlook: Forecast | None,
    tolerated: Tolerance,
    may_lose_bytes: int | None,
    policy: Policy,
    reports: dict[str, NodeReport | None],
    running: bool,
    store: bool,
) -> str:
    if register is None and running:
        return _in_words_without_register(tolerated, reports, store=store)
    return while_lost(outlook) or in_words(
        tolerated,
        may_lose_bytes,
        serving=register is not None and register.leader is not None,
        running=running,
        store=store,
        successor=outlook is not None and outlook.if_primary_died.candidate is not None,
        may_degrade=policy.local_commits_allowed,
    )


def _in_words_without_register(tolerated: Tolerance, reports: dict[str, NodeReport | None], *, store: bool) -> str:
    goes_on = next((r.node for r in reports.values() if r is not None and r.status is ServerStatus.PRIMARY), None)
    if goes_on is None:
        return in_words(tolerated, None, serving=False)
    return without_register(tolerated, goes_on, store=store)


def while_lost(outlook: Forecast | None) -> str | None:
    """What can come of a primary that is lost now."""
    if outlook is None or outlook.primary_lost is None:
        return None
    candidate = outlook.if_primary_died.candidate
    comes = f"{candidate} can take over" if candidate else f"nobody can take over: {outlook.if_primary_died.because}"
    return f"the primary {outlook.primary} is lost ({outlook.primary_lost}); {comes}"


def without_register(tolerated: Tolerance, primary: str, *, store: bool) -> str:
    """Which losses are survived while nobody can be promoted."""
    why = "has no register" if store else "does not answer"
    standbys = f"of its standbys {tolerated.standbys} may be lost" if tolerated.standbys else "no standby may be lost"
    return f"the store {why}, so nobody can be promoted; {primary} goes on as primary; {standbys}"


def in_words(
    tolerated: Tolerance,
    may_lose_bytes: int | None,
    *,
    serving: bool,
    running: bool = True,
    store: bool = True,
    successor: bool = True,
    may_degrade: bool = False,
) -> str:
    """Which losses the cluster survives now, as a sentence; ``may_lose_bytes`` while commits are local."""
    if not running:
        return "nothing runs"
    if not serving:
        return "no primary serves at the moment: writes wait"
    standbys = {
        0: "no standby streams" if may_degrade else "no standby may be lost: writes would wait",
        1: "one standby may be lost",
    }.get(tolerated.standbys, f"{tolerated.standbys} standbys may be lost")
    if not store:
        return f"the store does not answer, so nobody can be promoted; {standbys}"
    if may_lose_bytes is not None:
        if not successor:
            return "the primary may not be lost: nobody could take over; writes go on without standbys"
        return f"if the primary is lost, up to {may_lose_bytes:,} bytes of its log are; writes go on without standbys"
    rest = "; without any standby, writes go on, on the primary only" if may_degrade else ""
    if tolerated.primary and tolerated.standbys >= 1:
        return f"the primary or {standbys.removesuffix(' may be lost')} may be lost{rest}"
    if tolerated.primary:
        return f"the primary may be lost; {standbys}{rest}"
    return f"the primary may not be lost: nobody could take over without risk; {standbys}{rest}"


def _node(
    name: str,
    record: NodeRecord | None,
    register: Register | None,
    reports: dict[str, NodeReport | None],
    postgres_port: int,
) -> NodeStatus:
    report = reports[name]
    members = {m.node for m in register.committed.quorum.members} if register else set()
    if report is None:
        role = record.state.value if record else "unknown"
        epoch = record.epoch if record else None
        return NodeStatus(name, role, epoch, None, None, False, name in members, False, postgres_port, None)
    primary = reports.get(register.leader.node) if register and register.leader else None
    lag: int | None = None
    if report.status is ServerStatus.STANDBY and primary is not None and primary.position and report.position:
        lag = max(0, int(primary.position.lsn) - int(report.position.lsn))
    return NodeStatus(
        name,
        role=report.status.value,
        epoch=record.epoch if record else report.register_epoch,
        position=f"{report.position.timeline}:{report.position.lsn}" if report.position else None,
        lag_bytes=lag,
        streaming=report.streaming,
        member=name in members,
        agent_alive=True,
        postgres_port=postgres_port,
        alarm=report.alarm,
        progress=report.progress,
        isolated=report.isolated,
    )
