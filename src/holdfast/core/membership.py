"""How the leader keeps (S, k) true to who streams (docs/protocol.md, "Changing S and k")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.actions import Action, TellPostgres, TellRegister
from holdfast.core.observation import Observation
from holdfast.core.quorum import SetPostgres, SetRegister, next_step, wanted_quorum
from holdfast.model.register import BARRIER_NAME, Member, Quorum, Register

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


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """One legal step."""

    rule: MembershipRule
    action: Action


def change_of(o: Observation, register: Register) -> MembershipChange | None:
    """The next step for a leader, or None."""
    registered = register.committed.quorum
    if BARRIER_NAME in (o.server.synchronous_names or ""):
        # Closed: PostgreSQL implies everything, and to take somebody in only loosens. It may be who opens us.
        joining = caught_up(o, register) - registered.members
        taken_in = Quorum(registered.members | joining, registered.k)
        return MembershipChange(MembershipRule.REGISTER, TellRegister(taken_in)) if joining else None
    in_postgres = in_effect(o.server.synchronous_names)
    if in_postgres is None:
        return MembershipChange(MembershipRule.RESTORE, TellPostgres(registered))
    streaming = caught_up(o, register)
    silent = frozenset(
        m for m in registered.members if o.now_ms - o.last_streamed_ms.get(m, o.now_ms) >= o.timeouts.member_silent_ms
    )
    superseded = frozenset(m for m in registered.members if _superseded(o, m))
    wanted = wanted_quorum(registered, streaming, silent, superseded)
    match next_step(registered, in_postgres, wanted, o.flushed, o.settled_lsn):
        case SetPostgres(quorum):
            return MembershipChange(MembershipRule.POSTGRES_FIRST, TellPostgres(quorum))
        case SetRegister(quorum):
            return MembershipChange(MembershipRule.REGISTER, TellRegister(quorum))
    return None


def in_effect(synchronous_names: str | None) -> Quorum | None:
    """The quorum that PostgreSQL asks for now; None if the setting is none of ours."""
    if synchronous_names == "":
        return Quorum(frozenset(), 0)
    return Quorum.parse(synchronous_names or "")


def caught_up(o: Observation, register: Register) -> frozenset[Member]:
    """Members that stream close behind, and new ones whose agents have promised this epoch."""
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
    )


def _superseded(o: Observation, member: Member) -> bool:
    peer = o.peers.get(member.node)
    report = peer.report if peer is not None else None
    return report is not None and report.member is not None and report.member != member
