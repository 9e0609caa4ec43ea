"""Quorum arithmetic: which recruits suffice, what a flush covers, and how (S, k) may change (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from holdfast.model.lsn import Lsn
from holdfast.model.register import Configuration, Member, Quorum


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
    if in_postgres != wanted and implies(wanted, registered):
        return SetPostgres(wanted)
    if registered != wanted and implies(in_postgres, wanted):
        loosens = implies(registered, wanted)
        if loosens or (settled_lsn is not None and covered(wanted, flushed, settled_lsn)):
            return SetRegister(wanted)
    return None


def wanted_quorum(
    registered: Quorum, streaming: frozenset[Member], silent: frozenset[Member], superseded: frozenset[Member]
) -> Quorum:
    """What the leader should work towards, one kind of change at a time: take in, then drop, then adjust ``k``.

    ``streaming`` have caught up, ``silent`` have been gone for too long, ``superseded`` are directories that no
    longer exist. The last member is never dropped: with nobody to confirm a commit, writes wait (strict durability).
    """
    joining = streaming - registered.members
    if joining:
        return Quorum(registered.members | joining, registered.k)
    leaving = (silent | superseded) & registered.members
    remaining = registered.members - leaving
    if leaving and remaining & streaming:
        if registered.k <= len(remaining):
            return Quorum(remaining, registered.k)
        return Quorum(registered.members, len(remaining))
    return Quorum(registered.members, default_k(len(registered.members)))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Which losses the cluster survives right now without losing a row or blocking."""

    primary: bool
    standbys: int
    """How many members may be lost, the primary staying, before writes wait."""


def tolerance(quorum: Quorum, streaming: Collection[Member]) -> Tolerance:
    """What may be lost now, given the members that stream."""
    present = len(quorum.members & frozenset(streaming))
    # After the primary's loss one of the present is promoted and another must confirm its barrier.
    survives_primary = quorum.k >= 1 and present >= max(quorum.recruits_needed, 2)
    return Tolerance(survives_primary, max(0, present - quorum.k))
