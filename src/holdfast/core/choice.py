"""Choosing the candidate among the recruits of an epoch (docs/protocol.md, "Choose")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.durability import Allowance
from holdfast.core.quorum import standbys_suffice
from holdfast.model.lsn import Lsn, Position, TimelineSwitch, is_on_history
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.register import Configuration, Member, Recruit


class ChoiceReason(StrEnum):
    """Why this candidate is safe to promote."""

    STANDBYS = "enough members joined, and this one has the most log of them"
    EQUALS_LEADER = "the committed leader joined, and this one has all of its log"
    LEADER_ITSELF = "only the committed leader has all that was acknowledged"
    WITHIN_LAG = "commits were local, the lost leader is fenced, and this one's lag is within maximum_lag_bytes"


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate and why it may be promoted."""

    candidate: Member
    reason: ChoiceReason


@dataclass(frozen=True, slots=True)
class Wishes:
    """What else decides: a preferred node breaks ties, then the policy's tags; ``allowance`` is what may be lost.

    ``leader_may_lead``: the others have had their time. ``leader_failed``: it was chosen before and did not serve.
    """

    preferred: str | None = None
    leader_may_lead: bool = False
    leader_failed: bool = False
    policy: Policy = DEFAULT_POLICY
    allowance: Allowance | None = None


def choose(committed: Configuration, recruits: Sequence[Recruit], wishes: Wishes) -> Choice | None:
    """The candidate, or None while none that may be promoted is among the recruits.

    The leader that was lost is chosen only as the last resort: what killed it may kill it again. Among equal logs
    what has been replayed decides, since the rest delays the promotion.
    """
    others = [r for r in recruits if r.member != committed.leader]
    able = [r for r in others if wishes.policy.promotable(r.member.node)]
    best = max(able, key=lambda r: _rank(r, committed, wishes), default=None)
    newest = max((r.position for r in others), default=None)
    led = next((r for r in recruits if r.member == committed.leader), None)
    reason = None
    if best is not None and best.position == newest and standbys_suffice(committed, [r.member for r in others]):
        reason = ChoiceReason.STANDBYS
    elif best is not None and led is not None and best.position >= led.position:
        reason = ChoiceReason.EQUALS_LEADER
    alone = wishes.policy.local_commits_allowed
    if best is not None and reason is not None and (alone or _has_follower(best, recruits)):
        return Choice(best.member, reason)
    if best is not None and _within_lag(best, led, committed, wishes):
        return Choice(best.member, ChoiceReason.WITHIN_LAG)
    # The best of the others is safe, but its barrier could never be passed; with the leader the others fit.
    stranded = reason is not None and led is not None and _has_follower(led, recruits)
    if led is not None and (wishes.leader_may_lead or committed.quorum.k == 0 or stranded):
        return Choice(led.member, ChoiceReason.LEADER_ITSELF)
    if best is not None and reason is not None and wishes.leader_may_lead:
        return Choice(best.member, reason)
    return None


def within(position: Position, allowance: Allowance) -> bool:
    """Whether a promotion at this position loses no more than is allowed."""
    missing_bytes = allowance.leader_lsn - position.lsn
    return position.timeline == allowance.timeline and missing_bytes <= allowance.maximum_lag_bytes


def _within_lag(best: Recruit, led: Recruit | None, committed: Configuration, wishes: Wishes) -> bool:
    if committed.quorum.k > 0:
        return False
    if led is None:
        return wishes.allowance is not None and within(best.position, wishes.allowance)
    # It has joined, so it is fenced and what it has is known; it goes first, unless it could not serve.
    known = Allowance(led.position.timeline, led.position.lsn, wishes.policy.maximum_lag_bytes)
    return wishes.leader_failed and within(best.position, known)


def _has_follower(candidate: Recruit, recruits: Sequence[Recruit]) -> bool:
    """Whether another recruit can follow the candidate as it is, and so confirm its barrier."""
    branch = TimelineSwitch(candidate.position.timeline, candidate.position.lsn)
    history = (*candidate.history, branch)
    return any(r is not candidate and is_on_history(r.position, candidate.epoch, history) for r in recruits)


def _rank(r: Recruit, committed: Configuration, wishes: Wishes) -> tuple[Position, bool, int, bool, Lsn, Member]:
    tags = wishes.policy.tags(r.member.node)
    near = bool(tags.zone) and tags.zone == wishes.policy.tags(committed.leader.node).zone
    return r.position, r.member.node == wishes.preferred, tags.priority, near, r.replayed_lsn, r.member
