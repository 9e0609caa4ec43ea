"""Quorum arithmetic: which recruits suffice, what a flush covers, and how (S, k) may change (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from holdfast.model.lsn import Lsn
from holdfast.model.register import NO_QUORUM, Configuration, Member, Quorum


def default_k(size: int) -> int:
    """How many of ``size`` members confirm a commit unless policy says otherwise: half, rounded up."""
    return (size + 1) // 2


def implies(stronger: Quorum, weaker: Quorum) -> bool:
    """Whether whatever satisfies ``stronger`` has at least ``weaker.k`` acknowledgements from ``weaker.members``."""
    return stronger.k - len(stronger.members - weaker.members) >= weaker.k


def covered(quorum: Quorum, flushed: Mapping[Member, Lsn], lsn: Lsn) -> bool:
    """Whether ``k`` of the members have flushed their log up to ``lsn``."""
    return sum(flushed.get(member, Lsn(0)) >= lsn for member in quorum.members) >= quorum.k


def standbys_suffice(committed: Configuration, recruits: Collection[Member]) -> bool:
    """Whether the recruits among the members intersect every set that could have acknowledged a commit."""
    return len(committed.quorum.members & frozenset(recruits)) >= committed.quorum.recruits_needed


def recruits_suffice(committed: Configuration, recruits: Collection[Member]) -> bool:
    """Whether an epoch may choose: the committed leader, or enough of its members, have joined."""
    return committed.leader in recruits or standbys_suffice(committed, recruits)


@dataclass(frozen=True, slots=True)
class SetPostgres:
    """Tell PostgreSQL first."""

    quorum: Quorum


@dataclass(frozen=True, slots=True)
class SetRegister:
    """Tell the register."""

    quorum: Quorum


Step = SetPostgres | SetRegister | None


def next_step(
    registered: Quorum, in_postgres: Quorum, wanted: Quorum, flushed: Mapping[Member, Lsn], settled_lsn: Lsn | None
) -> Step:
    """The next legal move towards ``wanted``, or None: nothing to do, or not yet.

    PostgreSQL's setting always implies the register's, and the register tightens only when the log so far
    (``settled_lsn``: taken after PostgreSQL's setting took effect) is flushed by ``k`` of the members it will name.
    """
    in_force = wanted if wanted.k > 0 else NO_QUORUM  # PostgreSQL has no way to spell a quorum of none
    if in_postgres != in_force and implies(in_force, registered):
        return SetPostgres(wanted)
    if registered != wanted and implies(in_postgres, wanted):
        loosens = implies(registered, wanted)
        if loosens or (settled_lsn is not None and covered(wanted, flushed, settled_lsn)):
            return SetRegister(wanted)
    return None


def wanted_quorum(
    registered: Quorum,
    streaming: frozenset[Member],
    leaving: frozenset[Member],
    confirmations: Callable[[int], int | None],
    may_degrade: bool,
) -> Quorum:
    """What the leader should work towards, one kind of change at a time: take in, then drop, then adjust ``k``.

    ``streaming`` have caught up and may be taken in; ``leaving`` are silent for too long, replaced or not wanted.
    ``confirmations`` says what ``k`` policy asks of a size (None: too few). The last member that confirms is never
    dropped: then writes wait, or, if they ``may_degrade``, commits become local and the members are kept.
    """
    members, k = registered.members, registered.k
    if confirmations(len(members)) == 0 and k > 0:
        return Quorum(members, 0)
    joining = streaming - members - leaving
    if joining:
        return Quorum(members | joining, k)
    remaining = members - leaving
    if remaining and remaining != members and (remaining & streaming or k == 0):
        enough = confirmations(len(remaining))
        if k <= len(remaining) and (enough is not None or k == 0):
            return Quorum(remaining, k)
        if enough is not None:
            return Quorum(members, enough)
    if may_degrade and members and members <= leaving:
        return Quorum(members, 0)
    goal = confirmations(len(members))
    if goal is not None and goal > k:
        goal = max(k, min(goal, len(members & streaming)))  # what nobody confirms would only make writes wait
    return Quorum(members, k if goal is None else goal)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Which losses the cluster survives right now without losing a row or blocking."""

    primary: bool
    standbys: int
    """How many members may be lost, the primary staying, before writes wait."""


def tolerance(quorum: Quorum, streaming: Collection[Member], *, may_degrade: bool = False) -> Tolerance:
    """What may be lost now, given the members that stream; ``may_degrade``: without any, commits are local."""
    present = len(quorum.members & frozenset(streaming))
    # After the primary's loss one of the present is promoted and another must confirm its barrier.
    survives_primary = quorum.k >= 1 and present >= max(quorum.recruits_needed, 2)
    return Tolerance(survives_primary, present if may_degrade else max(0, present - quorum.k))
