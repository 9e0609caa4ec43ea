"""Choosing the candidate among the recruits of an epoch (docs/protocol.md, "Choose")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.quorum import standbys_suffice
from holdfast.model.lsn import Lsn, Position, TimelineSwitch, is_on_history
from holdfast.model.register import Configuration, Member, Recruit


class ChoiceReason(StrEnum):
    """Why this candidate is safe to promote."""

    STANDBYS = "enough members joined, and this one has the most log of them"
    EQUALS_LEADER = "the committed leader joined, and this one has all of its log"
    LEADER_ITSELF = "only the committed leader has all that was acknowledged"


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate and why it holds every acknowledged commit."""

    candidate: Member
    reason: ChoiceReason


def choose(
    committed: Configuration, recruits: Sequence[Recruit], preferred: str | None, leader_may_lead: bool
) -> Choice | None:
    """The candidate, or None while no safe one is among the recruits.

    The leader that was lost is chosen only as the last resort (``leader_may_lead``: the others have had their time):
    what killed it may kill it again. ``preferred`` is a node's name and breaks ties only; then what has been replayed
    does, since the rest delays the promotion.
    """
    others = [r for r in recruits if r.member != committed.leader]
    best = max(others, key=lambda r: _rank(r, preferred), default=None)
    led = next((r for r in recruits if r.member == committed.leader), None)
    reason = None
    if best is not None and standbys_suffice(committed, [r.member for r in others]):
        reason = ChoiceReason.STANDBYS
    elif best is not None and led is not None and best.position >= led.position:
        reason = ChoiceReason.EQUALS_LEADER
    if best is not None and reason is not None and _has_follower(best, recruits):
        return Choice(best.member, reason)
    # The best of the others is safe, but its barrier could never be passed; with the leader the others fit.
    stranded = reason is not None and led is not None and _has_follower(led, recruits)
    if led is not None and (leader_may_lead or committed.quorum.k == 0 or stranded):
        return Choice(led.member, ChoiceReason.LEADER_ITSELF)
    if best is not None and reason is not None and leader_may_lead:
        return Choice(best.member, reason)
    return None


def _has_follower(candidate: Recruit, recruits: Sequence[Recruit]) -> bool:
    """Whether another recruit can follow the candidate as it is, and so confirm its barrier."""
    branch = TimelineSwitch(candidate.position.timeline, candidate.position.lsn)
    history = (*candidate.history, branch)
    return any(r is not candidate and is_on_history(r.position, candidate.epoch, history) for r in recruits)


def _rank(r: Recruit, preferred: str | None) -> tuple[Position, bool, Lsn, Member]:
    return r.position, r.member.node == preferred, r.replayed_lsn, r.member
