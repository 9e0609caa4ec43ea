"""Why nobody can take over safely now: which nodes are missing, and what people can do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast.core.durability import is_local
from holdfast.core.quorum import recruits_suffice
from holdfast.model.policy import Policy
from holdfast.model.register import Configuration, Member

DEGRADE = "`holdfast policy set durability=degrading` lets it go on alone"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stands in the way of a primary. ``away``: the nodes that would mend it if all of them came back.

    ``remedy`` is what people can do. The words do not tick: they change when a node comes or goes, and not with time.
    """

    what: str
    away: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


Answering = Mapping[str, Member | None]
"""Whose agents answer, each with the directory that it has (None: none that could be started)."""


def obstacle(committed: Configuration, willing: frozenset[Member], answering: Answering, policy: Policy) -> Obstacle:
    """Why an epoch that is opened now could not be recruited, or its candidate not pass the barrier.

    ``willing`` are the directories that would join it. Call it only if the pre-vote fails.
    """
    quorum, leader = committed.quorum, committed.leader
    counted_on = quorum.members | {leader}
    missing = {m.node: how_missing(m, answering) for m in sorted(counted_on - willing)}
    here = {m.node for m in willing & counted_on}  # if a former directory is counted on, too, it is gone for good
    words, nodes = ", ".join(missing.values()), tuple(name for name in missing if name not in here)
    if not recruits_suffice(committed, willing):
        if is_local(quorum):
            what = f"commits were local, and nobody who can join is known to be near enough to {leader.node}: {words}"
            return Obstacle(
                what,
                nodes,
                f"{bring_back([leader.node])}, or let go of more with `holdfast policy set maximum_lag_bytes=`",
            )
        who = sorted({m.node for m in quorum.members})
        enough = quorum.recruits_needed
        need = f"{leader.node}, or {enough} of {', '.join(who)}" if enough <= len(who) else leader.node
        what = f"to be sure of every acknowledged commit, {need} must be there: {words}"
        return Obstacle(what, nodes, f"{bring_back(nodes)} (as many as it takes)")
    if not any(policy.promotable(m.node) for m in willing):
        fit = ", ".join(sorted(m.node for m in willing))
        return Obstacle(
            f"policy lets none of those be promoted who could be ({fit}): {words}",
            nodes,
            f"{bring_back(nodes)}, or `holdfast policy set NODE.promotable=true`",
        )
    others = [name for name in answering if name not in {m.node for m in willing}]
    unfit = {**missing, **{name: f"{name} cannot follow" for name in others if name not in missing}}
    words, nodes = ", ".join(unfit.values()) or "there is no other", tuple(name for name in unfit if name not in here)
    what = f"{_who(willing)} could lead, and another node must confirm the first commit: {words}"
    return Obstacle(what, nodes, f"{bring_back(nodes)}, or: {DEGRADE}" if nodes else DEGRADE)


def how_missing(member: Member, answering: Answering) -> str:
    """Why a directory that is counted on does not count now."""
    node = member.node
    if node not in answering:
        return f"{node} does not answer"
    found = answering[node]
    if found is None:
        return f"{node} has lost its data directory"
    if found != member:
        return f"{node} has another data directory than the one that is counted on"
    return f"{node} is not fit to join"


def bring_back(nodes: Iterable[str]) -> str:
    """What people do about nodes that are missing."""
    return f"bring back, with its data: {', '.join(nodes)}"


def _who(willing: frozenset[Member]) -> str:
    return " or ".join(sorted(m.node for m in willing))
