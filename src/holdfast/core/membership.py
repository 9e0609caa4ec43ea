"""How the leader keeps (S, k) true to who streams (docs/protocol.md, "Changing S and k")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from holdfast.core.actions import Action, TellPostgres, TellRegister
from holdfast.core.durability import acknowledges_alone, confirmations, holds_lease, is_local
from holdfast.core.observation import Observation
from holdfast.core.quorum import SetPostgres, SetRegister, implies, next_step, wanted_quorum
from holdfast.model.policy import Durability
from holdfast.model.register import BARRIER_NAME, NO_QUORUM, Member, Quorum, Register

CATCH_UP_BYTES = 16 * 1024 * 1024
"""A standby within one log segment of the leader has caught up: it will confirm commits without delay."""


class MembershipRule(StrEnum):
    """Why (S, k) is changed."""

    RESTORE = "quorum.restore"
    """PostgreSQL has a setting that is none of ours: put the committed one back."""
    POSTGRES_FIRST = "quorum.postgres-first"
    """Tightening: PostgreSQL asks for it before the register promises it."""
    REGISTER = "quorum.register"
    """PostgreSQL's setting implies it, and if it tightens, the log so far is flushed accordingly."""
    LEASE_FIRST = "quorum.lease-first"
    """Commits are to become local: nothing turns to k = 0 before the leader has the lease."""


_RULES = {SetPostgres: MembershipRule.POSTGRES_FIRST, SetRegister: MembershipRule.REGISTER}


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """One legal step; no actions while it has to wait."""

    rule: MembershipRule
    actions: tuple[Action, ...]


def change_of(o: Observation, register: Register) -> MembershipChange | None:
    """The next step for a leader, or None."""
    registered = register.committed.quorum
    if BARRIER_NAME in (o.server.synchronous_names or ""):
        # Closed: PostgreSQL implies everything, so the register may loosen. It may be what opens us: a member more, or
        # fewer confirmations than there are members left.
        wanted = _wanted(o, register)
        loosens = wanted != registered and implies(registered, wanted)
        return _legal(o, SetRegister(wanted), MembershipRule.REGISTER) if loosens else None
    in_postgres = in_effect(o.server.synchronous_names)
    if in_postgres is None:
        return _legal(o, SetPostgres(registered), MembershipRule.RESTORE)
    step = next_step(registered, in_postgres, _wanted(o, register), o.flushed, o.settled_lsn)
    return None if step is None else _legal(o, step, _RULES[type(step)])


def wants_lease(o: Observation, register: Register) -> bool:
    """Whether this leader acknowledges alone, or is about to."""
    if acknowledges_alone(o):
        return True
    return is_local(_wanted(o, register))


def _wanted(o: Observation, register: Register) -> Quorum:
    members = register.committed.quorum.members
    leaving = frozenset(m for m in members | caught_up(o, register) if _is_leaving(o, m))
    may_degrade = o.policy.durability is Durability.DEGRADING
    count = partial(confirmations, o.policy)
    return wanted_quorum(register.committed.quorum, caught_up(o, register), leaving, count, may_degrade)


def _is_leaving(o: Observation, member: Member) -> bool:
    silent_ms = o.now_ms - o.last_streamed_ms.get(member, o.now_ms)
    return silent_ms >= o.timeouts.member_silent_ms or _superseded(o, member) or not o.policy.promotable(member.node)


def _legal(o: Observation, step: SetPostgres | SetRegister, rule: MembershipRule) -> MembershipChange:
    if is_local(step.quorum) and not holds_lease(o):
        return MembershipChange(MembershipRule.LEASE_FIRST, ())
    action = TellPostgres(step.quorum) if isinstance(step, SetPostgres) else TellRegister(step.quorum)
    return MembershipChange(rule, (action,))


def in_effect(synchronous_names: str | None) -> Quorum | None:
    """The quorum that PostgreSQL asks for now; None if the setting is none of ours."""
    if synchronous_names == "":
        return NO_QUORUM
    return Quorum.parse(synchronous_names or "")


def caught_up(o: Observation, register: Register) -> frozenset[Member]:
    """Members that stream close behind, and new ones whose agents have promised this epoch and have log of it."""
    own = o.server.position
    near = {
        r.member
        for r in o.server.replicas
        if r.state == "streaming" and r.flush_lsn is not None and own is not None
        and own.lsn - r.flush_lsn <= CATCH_UP_BYTES
    }  # fmt: skip
    return frozenset(m for m in near if m in register.committed.quorum.members or _promised(o, m, register))


def _promised(o: Observation, member: Member, register: Register) -> bool:
    peer = o.peers.get(member.node)
    report = peer.report if peer is not None else None
    return (
        member.node in register.voters
        and report is not None
        and report.member == member
        and report.promised == register.epoch
        and o.has_log_of_epoch(member)
    )


def _superseded(o: Observation, member: Member) -> bool:
    peer = o.peers.get(member.node)
    report = peer.report if peer is not None else None
    return report is not None and report.member is not None and report.member != member
