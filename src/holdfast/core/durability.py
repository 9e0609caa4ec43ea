"""What the policy asks of a quorum, and when commits may be local (docs/protocol.md, "Asynchronous and degraded")."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.observation import Observation
from holdfast.core.quorum import default_k
from holdfast.model.lease import LeaseRecord
from holdfast.model.lsn import Lsn
from holdfast.model.policy import Durability, Policy
from holdfast.model.register import Member, Quorum, Register

CLOCK_DRIFT_PERCENT = 2
"""How much faster or slower the clocks of two machines may run."""


def confirmations(policy: Policy, size: int) -> int | None:
    """How many of ``size`` members confirm a commit; None: too few for what the policy asks, so that writes wait."""
    if policy.durability is Durability.ASYNCHRONOUS:
        return 0
    wanted = policy.confirmations or default_k(size)
    if 1 <= wanted <= size:
        return wanted
    return size if policy.durability is Durability.DEGRADING else None


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much log a promotion may lose: commits were local, and the lost leader is known to be fenced."""

    timeline: int
    leader_lsn: Lsn
    """Where the leader's log ended when it last said so."""
    maximum_lag_bytes: int


def is_local(quorum: Quorum | None) -> bool:
    """Whether commits under this quorum are acknowledged with nobody's word."""
    return quorum is not None and quorum.k == 0


def acknowledges_alone(o: Observation) -> bool:
    """Whether what this primary acknowledges may be on no other node."""
    return o.register is not None and is_local(o.register.committed.quorum)


def holds_lease(o: Observation) -> bool:
    """Whether this leader may acknowledge alone now."""
    return o.leased_until_ms is not None and o.now_ms < o.leased_until_ms


def may_take(record: LeaseRecord | None, epoch: int) -> bool:
    """Whether the leader of a serving ``epoch`` may write the lease over this record.

    A record of a later epoch was written by those who are replacing this leader: it is over.
    """
    return record is None or record.epoch <= epoch


def may_pledge(o: Observation, leader: Member, epoch: int) -> bool:
    """Whether this node may promise a leader that is cut off from the store to join no epoch for a moment."""
    register = o.register
    if register is None or o.trouble is not None or o.promised > epoch:
        return False
    return register.leader == leader and register.epoch == epoch


def is_revoked(o: Observation, register: Register) -> bool:
    """Whether the lease of the leader that this epoch replaces can be renewed no more."""
    return o.lease is not None and o.lease.revoked and o.lease.epoch > register.committed.epoch


def lease_is_over(o: Observation, register: Register) -> bool:
    """Whether the lost leader's lease has ended on every clock."""
    if not is_revoked(o, register) or o.lease_renewed_ms is None:
        return False
    lease_ms = o.timeouts.lease_ms * (100 + CLOCK_DRIFT_PERCENT) // 100
    return o.now_ms - o.lease_renewed_ms >= lease_ms


def allowance_of(o: Observation, register: Register) -> Allowance | None:
    """What a promotion without the committed leader may lose now; None: nothing, or not yet."""
    if not is_local(register.committed.quorum) or not lease_is_over(o, register):
        return None
    if o.lease is None or o.lease.lsn is None:
        return None
    return Allowance(register.committed.epoch, o.lease.lsn, o.policy.maximum_lag_bytes)
