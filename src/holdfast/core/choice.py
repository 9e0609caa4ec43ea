"""Choosing the candidate among the recruits of an epoch (docs/protocol.md, "Choose")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.quorum import standbys_suffice
from holdfast.model.lsn import Lsn, Position
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
    if best is not None and standbys_suffice(committed, [r.member for r in others]):
        return Choice(best.member, ChoiceReason.STANDBYS)
    led = next((r for r in recruits if r.member == committed.leader), None)
    if led is None:
        return None
    if best is not None and best.position >= led.position:
        return Choice(best.member, ChoiceReason.EQUALS_LEADER)
    if leader_may_lead or committed.quorum.k == 0:
        return Choice(led.member, ChoiceReason.LEADER_ITSELF)
    return None


def _rank(r: Recruit, preferred: str | None) -> tuple[Position, bool, Lsn, Member]:
    return r.position, r.member.node == preferred, r.replayed_lsn, r.member
