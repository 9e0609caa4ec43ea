"""What any voter may do for the whole cluster: open an epoch, choose, take over (docs/protocol.md, "Failover")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.actions import (
    Action,
    AskPeers,
    Await,
    Awaited,
    CancelHandOver,
    ChooseCandidate,
    OpenEpoch,
    RevokeLease,
)
from holdfast.core.choice import Choice, Wishes, choose, within
from holdfast.core.durability import Allowance, allowance_of, is_local, is_revoked
from holdfast.core.leadership import Situation
from holdfast.core.observation import Observation, Peer
from holdfast.core.obstacle import Obstacle, obstacle
from holdfast.core.quorum import recruits_suffice
from holdfast.model.errors import ProtocolViolation
from holdfast.model.policy import Promotion
from holdfast.model.register import Member, Phase, Register
from holdfast.model.report import NodeReport, Verdict, VerdictKind
from holdfast.model.server import ServerStatus


class Signal(StrEnum):
    """What calls for coordination."""

    QUIET = "quiet"
    SUSPECTED = "suspected"
    """A majority of the voters, or the leader's own agent, holds that the one that leads is lost."""
    LEASED = "leased"
    """Commits were local, the leader has not joined, and it could still renew its lease."""
    ENOUGH = "enough"
    """A safe candidate is among the recruits."""
    STALLED = "stalled"
    """The phase has not advanced for its time."""


@dataclass(frozen=True, slots=True)
class CoordinationRule:
    """One row of the second table."""

    id: str
    comment: str
    act: Callable[[Observation, Register], tuple[Action, ...]]
    moves_to: Phase | None = None


@dataclass(frozen=True, slots=True)
class Coordination:
    """What to do now for the cluster, and the rule that says so."""

    phase: Phase
    signal: Signal
    rule: CoordinationRule
    actions: tuple[Action, ...]


_UNFIT = (Situation.ABSENT.value, Situation.REBUILDING.value, Situation.SILENT.value)


def willing_members(o: Observation, register: Register, since_ms: int) -> frozenset[Member]:
    """The directories that would join an epoch now, by answers not older than ``since_ms``; the own one included."""
    willing = {
        p.report.member
        for p in o.peers.values()
        if p.report is not None
        and p.report.member is not None
        and p.answered_ms is not None
        and p.answered_ms >= since_ms
        and would_join(p.report, register)
    }
    if o.member is not None and not o.rebuilding and o.server.status is not ServerStatus.UNRESPONSIVE:
        willing.add(o.member)
    counted_on = register.committed.quorum.members | {register.committed.leader}
    return frozenset(m for m in willing if m in counted_on or _has_log_of_epoch(o, register, m))


def _has_log_of_epoch(o: Observation, register: Register, member: Member) -> bool:
    """Whether a directory that the quorum does not name has followed this leader, or this candidate.

    It can follow the next one, too.
    """
    peer = o.peers.get(member.node)
    position = o.own_log_end() if member == o.member else peer.report.position if peer and peer.report else None
    return position is not None and position.timeline in (register.committed.epoch, register.epoch)


def would_join(report: NodeReport, register: Register) -> bool:
    """Whether a node that says this would join the next epoch: who does not hear the store would not hear of it."""
    return report.store_connected and _is_fit(report, register)


def _is_fit(report: NodeReport, register: Register) -> bool:
    return report.promised <= register.epoch and report.situation not in _UNFIT and report.alarm is None


def prevote_passes(o: Observation, register: Register, willing: frozenset[Member]) -> bool:
    """Whether an epoch opened now could be recruited, and its candidate pass the barrier."""
    promotable = [m for m in willing if o.policy.promotable(m.node)]
    enough = recruits_suffice(register.committed, willing) or any(_is_near(o, register, m) for m in promotable)
    barred = 1 if o.policy.local_commits_allowed else 1 + (o.policy.confirmations or 1)
    return enough and bool(promotable) and len(willing) >= barred


def _is_near(o: Observation, register: Register, member: Member) -> bool:
    """Whether commits were local and, as far as is known, the member lacks no more than the policy lets go."""
    if not is_local(register.committed.quorum) or o.lease is None or o.lease.lsn is None:
        return False
    peer = o.peers.get(member.node)
    position = o.own_log_end() if member == o.member else peer.report.position if peer and peer.report else None
    allowance = Allowance(register.committed.epoch, o.lease.lsn, o.policy.maximum_lag_bytes)
    return position is not None and within(position, allowance)


def _open(o: Observation, register: Register, why: str, state: str) -> tuple[Action, ...]:
    """``why`` is for the journal; ``state`` is what people are told while it cannot be done, and does not tick."""
    since_ms = o.suspected_since_ms if o.suspected_since_ms is not None else o.now_ms
    if prevote_passes(o, register, willing_members(o, register, since_ms)):
        return (OpenEpoch(why),)
    asked_ms = [p.asked_ms or 0 for p in o.peers.values()]
    if any(ms < since_ms for ms in asked_ms):
        return (AskPeers(),)
    if o.now_ms - since_ms < o.timeouts.store_silence_ms and any(_reconnects(p, register) for p in o.peers.values()):
        # Who watched through the endpoint beside the lost leader is back within moments: wait for no heartbeat.
        return (AskPeers(),) if o.now_ms - max(asked_ms) >= o.timeouts.busy_tick_interval_ms else ()
    return (Await(f"{state}: nobody can take over safely: {_obstacle(o, register, since_ms)}"),)


def _obstacle(o: Observation, register: Register, since_ms: int) -> Obstacle:
    answering: dict[str, Member | None] = {
        name: p.report.member
        for name, p in o.peers.items()
        if p.report is not None and p.answered_ms is not None and p.answered_ms >= since_ms
        and name in register.data_nodes
    }  # fmt: skip
    if o.node in register.data_nodes:
        answering[o.node] = o.member
    return obstacle(register.committed, willing_members(o, register, since_ms), answering, o.policy)


def _reconnects(peer: Peer, register: Register) -> bool:
    """Whether all that a peer lacks to join an epoch is its connection to the store."""
    report = peer.report
    return report is not None and report.member is not None and not report.store_connected and _is_fit(report, register)


def _lost(o: Observation, register: Register) -> tuple[str, str]:
    """Why the one that leads is replaced, for the journal, and in words that do not tick."""
    about = register.candidate or register.committed.leader
    if o.verdict is None:
        return "suspected by the voters", f"{about.node} is suspected"
    return o.verdict.evidence, f"{about.node} is {o.verdict.kind.value}"


def _suspected(o: Observation, register: Register) -> tuple[Action, ...]:
    why, state = _lost(o, register)
    if o.policy.promotion is Promotion.APPROVED and o.approved_epoch != register.epoch:
        words = f"{state}: a failover waits for `holdfast approve`, as the policy asks"
        return (Await(words, Awaited.APPROVAL),)
    return _open(o, register, why, state)


def _replace_lost(o: Observation, register: Register) -> tuple[Action, ...]:
    return _open(o, register, *_lost(o, register))


def _stalled(o: Observation, register: Register) -> tuple[Action, ...]:
    words = f"{register.phase.value} did not advance"
    return _open(o, register, words, words)


def best_choice(o: Observation, register: Register) -> Choice | None:
    """The candidate that the recruits of this epoch allow."""
    recruits = [r for r in o.recruits if r.epoch == register.epoch]
    wishes = Wishes(
        preferred=register.handover,
        leader_may_lead=o.now_ms - o.phase_since_ms >= o.timeouts.leader_restart_grace_ms,
        leader_failed=register.epoch - register.committed.epoch > 2,
        policy=o.policy,
        allowance=allowance_of(o, register),
    )
    return choose(register.committed, recruits, wishes)


def _choose(o: Observation, register: Register) -> tuple[Action, ...]:
    choice = best_choice(o, register)
    if choice is None:
        return ()
    recent_ms = o.now_ms - 2 * o.timeouts.heartbeat_interval_ms
    expected = willing_members(o, register, recent_ms) - {register.committed.leader}
    missing = expected - {r.member for r in o.recruits}
    waited_ms = o.now_ms - (o.enough_since_ms if o.enough_since_ms is not None else o.now_ms)
    if missing and waited_ms < o.timeouts.recruit_grace_ms and not _is_handed_over(register, choice, o):
        return ()
    return (ChooseCandidate(choice.candidate, choice.reason),)


def _is_handed_over(register: Register, choice: Choice, o: Observation) -> bool:
    """Whether a switchover has arrived where it was to: its target is safe, and the old leader has nothing to add."""
    joined = {r.member for r in o.recruits if r.epoch == register.epoch}
    return choice.candidate.node == register.handover and register.committed.leader in joined


def _nothing(o: Observation, register: Register) -> tuple[Action, ...]:
    return ()


def _revoke(o: Observation, register: Register) -> tuple[Action, ...]:
    return (RevokeLease(),)


def _expire(o: Observation, register: Register) -> tuple[Action, ...]:
    return (CancelHandOver(),)


_OPEN = CoordinationRule(
    "epoch.suspect", "pre-vote; if the epoch could be recruited and barred, open it", _suspected, Phase.RECRUITING
)
_REPLACE = CoordinationRule(
    "epoch.replace", "pre-vote, then open the next epoch in place of a stalled one", _stalled, Phase.RECRUITING
)
_QUIET = CoordinationRule("epoch.quiet", "nothing calls for the voters", _nothing)

COORDINATION: dict[tuple[Phase, Signal], CoordinationRule] = {
    (Phase.SERVING, Signal.QUIET): _QUIET,
    (Phase.SERVING, Signal.SUSPECTED): _OPEN,
    (Phase.SERVING, Signal.STALLED): CoordinationRule(
        "handover.expire", "a switchover whose leader does not go on with it is given up for it", _expire
    ),
    (Phase.RECRUITING, Signal.QUIET): _QUIET,
    (Phase.RECRUITING, Signal.LEASED): CoordinationRule(
        "lease.revoke", "the lost leader acknowledged alone: see that it can renew its lease no more", _revoke
    ),
    (Phase.RECRUITING, Signal.ENOUGH): CoordinationRule(
        "epoch.choose", "after a short grace for more log, swap to promoting", _choose, Phase.PROMOTING
    ),
    (Phase.RECRUITING, Signal.STALLED): _REPLACE,
    (Phase.PROMOTING, Signal.QUIET): _QUIET,
    (Phase.PROMOTING, Signal.SUSPECTED): CoordinationRule(
        "epoch.replace-lost",
        "pre-vote, then open the next epoch in place of a lost candidate's",
        _replace_lost,
        Phase.RECRUITING,
    ),
    (Phase.PROMOTING, Signal.STALLED): _REPLACE,
}


def phase_timeout_ms(o: Observation, register: Register) -> int:
    """How long the phase may stand still: doubled for each epoch replaced, apart by rank so that voters do not duel."""
    recruiting = register.phase is Phase.RECRUITING
    base_ms = o.timeouts.recruit_phase_ms if recruiting else o.timeouts.promote_phase_ms
    replaced = min(register.epoch - register.committed.epoch - 1, 16)
    rank = register.voters.index(o.node) if o.node in register.voters else len(register.voters)
    return min(base_ms << max(replaced, 0), o.timeouts.phase_backoff_max_ms) + rank * base_ms // 8


def hand_over_limit_ms(o: Observation) -> int:
    """How long a switchover may be on its way before an epoch is opened for it."""
    return o.timeouts.handover_drain_ms + o.timeouts.handover_stop_ms + o.timeouts.promote_phase_ms


def suspected(o: Observation, register: Register) -> bool:
    """Whether enough voters hold that the one that leads is lost."""
    about = o.led_by
    verdict = o.verdict
    if about is None or verdict is None or verdict.about != about:
        return False
    if about == o.member and verdict.kind is VerdictKind.DEAD:
        return True  # its own agent knows best
    if o.last_failover_ms is not None and o.now_ms - o.last_failover_ms < o.timeouts.cool_down_ms:
        return False
    oldest_ms = o.now_ms - 2 * o.timeouts.heartbeat_interval_ms - o.timeouts.peer_timeout_ms
    against = 0
    for name in register.voters:
        if name == o.node:
            against += _is_against(verdict, about, register)
            continue
        peer = o.peers.get(name)
        if peer is not None and peer.report is not None and (peer.answered_ms or 0) >= oldest_ms:
            against += _is_against(peer.report.verdict, about, register)
    return against > len(register.voters) // 2


def _is_against(verdict: Verdict | None, about: Member, register: Register) -> bool:
    if verdict is None or not verdict.calls_for_failover:
        return False
    return verdict.about == about and verdict.epoch == register.epoch


def signal_of(o: Observation, register: Register) -> Signal:
    """What calls for coordination now."""
    match register.phase:
        case Phase.SERVING:
            if suspected(o, register):
                return Signal.SUSPECTED
            expired = o.now_ms - o.progress_ms >= hand_over_limit_ms(o)
            return Signal.STALLED if register.handover is not None and expired else Signal.QUIET
        case Phase.RECRUITING:
            if best_choice(o, register) is not None:
                return Signal.ENOUGH
            if is_local(register.committed.quorum) and not is_revoked(o, register):
                return Signal.LEASED
            return _stands(o, register)
        case Phase.PROMOTING:
            if register.epoch == 1:
                return Signal.QUIET  # a new cluster: there is nobody else to promote
            if o.led_by != o.member and suspected(o, register):
                return Signal.SUSPECTED
            return _stands(o, register)


def _stands(o: Observation, register: Register) -> Signal:
    return Signal.STALLED if o.now_ms - o.progress_ms >= phase_timeout_ms(o, register) else Signal.QUIET


def coordinate(o: Observation) -> Coordination | None:
    """What this voter may do for the cluster now; None without a register to go by, or if it is no voter."""
    register = o.register
    if register is None or o.trouble is not None or o.node not in register.voters or o.policy.paused:
        return None
    signal = signal_of(o, register)
    rule = COORDINATION.get((register.phase, signal))
    if rule is None:
        raise ProtocolViolation(f"no rule for phase {register.phase.value} when {signal.value}")
    return Coordination(register.phase, signal, rule, rule.act(o, register))
