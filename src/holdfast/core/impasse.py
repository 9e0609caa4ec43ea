"""Why a cluster does not serve, as whoever asks every agent can tell: what ``holdfast status`` says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from holdfast.core.forecast import Standing, willing_by_reports
from holdfast.core.obstacle import DEGRADE, Obstacle, bring_back, how_missing, obstacle
from holdfast.model.policy import Promotion
from holdfast.model.register import Member, Phase
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus


def impasse(now: Standing) -> Obstacle | None:
    """What keeps the cluster from serving, and does not pass by itself; None if nothing does, as far as can be told."""
    register = now.register
    leader = register.leader
    if leader is not None:
        led = now.reports.get(leader.node)
        if led is not None and led.member == leader and led.status is ServerStatus.PRIMARY:
            return _unconfirmed(now, led)
        if not _is_held_for_lost(leader, now):
            return None
    about = leader or register.candidate or register.committed.leader
    if now.policy.paused:
        return Obstacle(f"{about.node} is lost, and the cluster is paused by policy", (), "`holdfast resume`")
    if leader is not None:
        if now.policy.promotion is Promotion.APPROVED:
            return Obstacle(
                f"{about.node} is lost, and a failover waits for approval, as the policy asks", (), "`holdfast approve`"
            )
        few = _too_few_voters(now, leader)
        if few is not None:
            rest = _obstacle(now, few.away)
            return few if rest is None else _both(now, few, rest)
    if register.phase is Phase.PROMOTING and register.epoch == 1 and now.reports.get(about.node) is None:
        what = f"{about.node}, which is to be the first primary, does not answer"
        return Obstacle(what, (about.node,), bring_back([about.node]))
    return _obstacle(now)


def uncreated(reports: Mapping[str, NodeReport | None]) -> Obstacle | None:
    """Why there is no cluster yet, if that does not pass by itself: who was to create it does not answer."""
    silent = tuple(name for name, report in reports.items() if report is None)
    if not silent or any(r is not None and r.promised for r in reports.values()):
        return None
    what = f"the store knows no cluster, and nothing is heard of {', '.join(silent)}"
    return Obstacle(what, silent, f"{bring_back(silent)}, or start another with `holdfast node --bootstrap`")


def _unconfirmed(now: Standing, led: NodeReport) -> Obstacle | None:
    """A primary whose commits nobody confirms."""
    quorum = now.register.committed.quorum
    streaming = {r.member for r in led.replicas if r.state == "streaming"}
    if now.register.phase is not Phase.SERVING or len(quorum.members & streaming) >= quorum.k:
        return None
    answering = _answering(now)
    missing = {
        m.node: f"{m.node} does not stream" if answering.get(m.node) == m else how_missing(m, answering)
        for m in sorted(quorum.members - streaming)
    }
    who = ", ".join(sorted(m.node for m in quorum.members))
    some = f"{quorum.k} of {who}" if len(quorum.members) > 1 else who
    what = f"writes wait: {some} must confirm each commit: {', '.join(missing.values())}"
    remedy = bring_back(missing)
    may_degrade = now.policy.local_commits_allowed
    return Obstacle(what, tuple(missing), remedy if may_degrade else f"{remedy}, or: {DEGRADE}")


def _is_held_for_lost(leader: Member, now: Standing) -> bool:
    verdicts = [r.verdict for r in now.reports.values() if r is not None and r.verdict is not None]
    return any(v.about == leader and v.calls_for_failover for v in verdicts)


def _too_few_voters(now: Standing, leader: Member) -> Obstacle | None:
    voters = now.register.voters
    majority = len(voters) // 2 + 1
    present = [name for name in voters if (report := now.reports.get(name)) is not None and report.store_connected]
    led = now.reports.get(leader.node)
    if len(present) >= majority or (led is not None and led.member == leader):
        return None  # the leader's own agent needs nobody to agree
    away = tuple(name for name in voters if name not in present)
    what = f"{majority} of {len(voters)} voters must agree that {leader.node} is lost, and {len(present)} can be asked"
    return Obstacle(
        f"{what}: nothing is heard of {', '.join(away)}", away, _voters_back(now, away, majority - len(present))
    )


def _voters_back(now: Standing, away: Collection[str], needed: int) -> str:
    nodes = [name for name in away if name not in now.register.witnesses]
    witnesses = ", ".join(name for name in away if name in now.register.witnesses)
    if nodes and witnesses:
        return f"{bring_back(nodes)}, {'or' if needed == 1 else 'and'} start the witness {witnesses} again"
    way = bring_back(nodes) if nodes else f"start the witness {witnesses} again"
    return f"{way} ({needed} of them will do)" if needed < len(away) else way


def _obstacle(now: Standing, back: Collection[str] = ()) -> Obstacle | None:
    """Why the pre-vote would fail; ``back``: as if these nodes were there with all that is counted on."""
    committed = now.register.committed
    counted_on = {m.node: m for m in (*sorted(committed.quorum.members), committed.leader) if m.node in back}
    willing, passes = willing_by_reports(now, frozenset(counted_on.values()))
    return None if passes else obstacle(committed, willing, {**_answering(now), **counted_on}, now.policy)


def _both(now: Standing, first: Obstacle, second: Obstacle) -> Obstacle:
    away = tuple(dict.fromkeys((*first.away, *second.away)))
    return Obstacle(f"{first.what}; and {second.what}", away, _voters_back(now, away, len(away)))


def _answering(now: Standing) -> dict[str, Member | None]:
    return {
        name: report.member
        for name, report in now.reports.items()
        if report is not None and name in now.register.data_nodes
    }
