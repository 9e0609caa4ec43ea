"""What would happen if a node died now, by the same rules that would decide then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from holdfast.core.choice import Wishes, choose
from holdfast.core.coordination import prevote_passes, would_join
from holdfast.core.durability import Allowance, confirmations, is_local
from holdfast.core.observation import Observation, Peer
from holdfast.model.lease import LeaseRecord
from holdfast.model.policy import Policy, Promotion
from holdfast.model.register import Member, Phase, Quorum, Recruit, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ABSENT_SERVER, ServerStatus
from holdfast.model.thresholds import Thresholds
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Space

Reports = Mapping[str, NodeReport | None]
"""What each voter's agent says now; None for one that does not answer."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A time, and where it comes from."""

    ms: int
    source: str


@dataclass(frozen=True, slots=True)
class Takeover:
    """What would come of the loss of the primary.

    ``rpo_bytes`` is how much acknowledged log would be lost (0: nothing acknowledged); ``obstacles`` are what stands in
    the way, or makes it worse than it could be.
    """

    candidate: str | None
    because: str
    rpo_bytes: int | None
    rto: Estimate | None
    obstacles: tuple[str, ...]
    local_commits: bool = False
    """Whether ``rpo_bytes`` is the lag of this moment: what is acknowledged in the last one comes on top."""


@dataclass(frozen=True, slots=True)
class StandbyLoss:
    """What would come of the loss of one standby: for writes, and for a primary that died after it."""

    node: str
    writes_go_on: bool
    then_primary: Takeover


@dataclass(frozen=True, slots=True)
class Forecast:
    """For every node, what its loss would mean now."""

    primary: str | None
    if_primary_died: Takeover
    if_standby_died: tuple[StandbyLoss, ...]
    """Empty while the primary is lost."""
    primary_lost: str | None = None
    """As what enough voters for a failover hold the primary for lost; None while they do not."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The cluster as its agents report it at one moment; times are the usual ones if they are not told."""

    register: Register
    reports: Reports
    policy: Policy
    rto: Estimate | None = None
    """How long a takeover took before."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    timeouts: Timeouts = field(default_factory=Timeouts)
    lease: LeaseRecord | None = None
    """The lease in the store; without it, what the leader says of itself is where its log ended."""


def forecast(now: Standing) -> Forecast:
    """What the loss of each node would mean now."""
    register = now.register
    if register.phase is not Phase.SERVING:
        nobody = Takeover(None, "no primary serves now", None, None, (f"epoch {register.epoch} is {register.phase}",))
        return Forecast(None, nobody, ())
    leader = register.committed.leader
    lost = _held_for_lost(now)
    if lost is not None:
        return Forecast(leader.node, _without_primary(now, frozenset({leader.node})), (), lost)
    lost_standbys = [_without_standby(now, name) for name in register.data_nodes if name != leader.node]
    return Forecast(leader.node, _without_primary(now, frozenset({leader.node})), tuple(lost_standbys))


def _held_for_lost(now: Standing) -> str | None:
    """What a majority of the voters says of a leader that is to be replaced."""
    leader, voters = now.register.committed.leader.node, now.register.voters
    verdicts = [r.verdict for name, r in now.reports.items() if r is not None and name in voters]
    against = [v.kind.value for v in verdicts if v is not None and v.about.node == leader and v.calls_for_failover]
    return max(sorted(against), key=against.count) if len(against) > len(voters) // 2 else None


def _without_standby(now: Standing, lost: str) -> StandbyLoss:
    committed = now.register.committed
    quorum = committed.quorum
    streaming = {r.member for r in now.reports.values() if r is not None and r.streaming and r.node != lost}
    present = len(quorum.members & streaming)
    writes_go_on = present >= quorum.k or now.policy.local_commits_allowed
    remaining = frozenset(m for m in quorum.members if m.node != lost)
    k = confirmations(now.policy, len(remaining))
    if writes_go_on and remaining != quorum.members and k is not None and (remaining or k == 0):
        # The leader drops who is silent for a while, and asks less of the rest.
        committed = replace(committed, quorum=Quorum(remaining, min(quorum.k, k)))
    after = replace(now, register=replace(now.register, committed=committed))
    return StandbyLoss(lost, writes_go_on, _without_primary(after, frozenset({lost, committed.leader.node})))


def _without_primary(now: Standing, gone: frozenset[str]) -> Takeover:
    register, committed = now.register, now.register.committed
    left = {name: report for name, report in now.reports.items() if name not in gone and name in register.voters}
    obstacles = [words for name, report in left.items() for words in _objections(name, report, now)]
    bars = _bars(now, left)
    obstacles += _waits(now)
    recruits = _recruits_of(now, left)
    willing = _willing(now, recruits)
    lead = now.reports.get(committed.leader.node)
    end = lead.position if lead is not None else None
    allowance = (
        Allowance(end.timeline, end.lsn, now.policy.maximum_lag_bytes) if end and not committed.quorum.k else None
    )
    choice = choose(committed, recruits, Wishes(policy=now.policy, allowance=allowance))
    if choice is None or not prevote_passes(_as_seen_by_nobody(now, left), register, willing):
        return Takeover(None, _why_nobody(now, willing), None, None, (*obstacles, *bars))
    if bars:
        return Takeover(None, bars[0], None, None, (*obstacles, *bars[1:]))
    candidate = choice.candidate
    rpo_bytes = 0 if committed.quorum.k > 0 else _lag_bytes(now.reports, committed.leader, candidate)
    local = is_local(committed.quorum)
    return Takeover(candidate.node, choice.reason.value, rpo_bytes, now.rto, tuple(obstacles), local)


def willing_by_reports(now: Standing, more: frozenset[Member]) -> tuple[frozenset[Member], bool]:
    """The directories that would join an epoch opened now, ``more`` included, and whether the pre-vote would pass."""
    left = {name: report for name, report in now.reports.items() if name in now.register.voters}
    willing = _willing(now, _recruits_of(now, left)) | more
    return willing, prevote_passes(_as_seen_by_nobody(now, left), now.register, willing)


def _recruits_of(now: Standing, left: Reports) -> list[Recruit]:
    return [r for report in left.values() if (r := _as_recruit(report, now.register)) is not None]


def _willing(now: Standing, recruits: list[Recruit]) -> frozenset[Member]:
    committed = now.register.committed
    counted_on = committed.quorum.members | {committed.leader}
    led = (committed.epoch, now.register.epoch)
    return frozenset(r.member for r in recruits if r.member in counted_on or r.position.timeline in led)


def _as_seen_by_nobody(now: Standing, left: Reports) -> Observation:
    """What an observer without a node of its own would see, for the rules of the voters."""
    committed = now.register.committed
    lead = now.reports.get(committed.leader.node)
    lsn = lead.position.lsn if lead is not None and lead.position is not None else None
    return Observation(
        now_ms=0,
        node="",
        timeouts=now.timeouts,
        member=None,
        promised=now.register.epoch,
        cluster_id=now.register.cluster_id,
        server=ABSENT_SERVER,
        register=now.register,
        peers={name: Peer(report, answered_ms=0) for name, report in left.items() if report is not None},
        policy=now.policy,
        lease=now.lease or LeaseRecord(committed.leader, committed.epoch, lsn),
    )


def _bars(now: Standing, left: Reports) -> list[str]:
    """What forbids a failover although somebody could take over."""
    found = []
    voters = now.register.voters
    voting = [name for name, report in left.items() if report is not None and report.store_connected]
    majority = len(voters) // 2 + 1
    if now.policy.paused:
        found.append("the cluster is paused by policy: nobody would take over before `holdfast resume`")
    if len(voting) < majority:
        found.append(
            f"only {len(voting)} of {len(voters)} voters would be left, and {majority} must agree that the primary is "
            "lost (its own agent, if it lives, needs nobody)"
        )
    return found


def _waits(now: Standing) -> list[str]:
    """What a failover would wait for."""
    found = []
    if now.policy.promotion is Promotion.APPROVED:
        found.append("the policy asks for approval: a failover waits for `holdfast approve`")
    if not now.register.committed.quorum.k:
        found.append(f"commits are local: who takes over waits until the lease ends ({now.timeouts.lease_ms} ms)")
    return found


def _as_recruit(report: NodeReport | None, register: Register) -> Recruit | None:
    """The record with which a node would join the next epoch."""
    if report is None or report.member is None or report.position is None or not would_join(report, register):
        return None
    promoted = report.status is ServerStatus.PRIMARY and report.member == register.candidate  # it stops, and joins
    if report.status not in (ServerStatus.STANDBY, ServerStatus.STOPPED) and not promoted:
        return None
    replayed = report.replay_lsn or report.position.lsn
    return Recruit(report.member, register.epoch + 1, report.position, report.history, replayed)


def _why_nobody(now: Standing, willing: frozenset[Member]) -> str:
    quorum = now.register.committed.quorum
    if not quorum.k:
        return "commits are local, and no standby that may be promoted is within maximum_lag_bytes of the primary"
    present = len(quorum.members & willing)
    if present < quorum.recruits_needed:
        return (
            f"{present} of the {len(quorum.members)} members of the quorum could join, and {quorum.recruits_needed} "
            "must, to be sure that nothing acknowledged is lost"
        )
    return "a new primary needs another node to confirm its first commit, and none would be left"


def _objections(name: str, report: NodeReport | None, now: Standing) -> list[str]:
    """What is not as it should be with a node that would have to take over or help."""
    if report is None:
        return [f"{name}: its agent does not answer"]
    found = []
    leader, members = now.register.committed.leader.node, {m.node for m in now.register.committed.quorum.members}
    if report.alarm is not None:
        found.append(f"{name}: alarm: {report.alarm}")
    if not report.store_connected:
        found.append(f"{name}: cannot reach the store")
    if name in now.register.witnesses:
        return found
    if report.progress is not None:
        found.append(f"{name}: {report.progress}")
    elif not report.streaming and name != leader and _held_for_lost(now) is None:
        found.append(f"{name}: does not stream ({report.status.value})")
    elif name not in members and name != leader and now.policy.promotable(name):
        found.append(f"{name}: is not a member of the quorum yet")
    vitals = report.vitals
    for what, space in (("data", vitals.data_space), ("log", vitals.log_space)) if vitals is not None else ():
        if _is_low(space, now.thresholds):
            found.append(f"{name}: its {what} disk is nearly full")
    return found


def _is_low(space: Space | None, limits: Thresholds) -> bool:
    return space is not None and space.free_bytes < limits.disk_low_bytes


def _lag_bytes(reports: Reports, leader: Member, candidate: Member) -> int | None:
    led, behind = reports.get(leader.node), reports.get(candidate.node)
    if led is None or behind is None or led.position is None or behind.position is None:
        return None
    return max(0, led.position.lsn - behind.position.lsn)
