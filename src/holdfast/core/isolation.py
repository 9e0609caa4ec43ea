"""Whether this node's server is cut off, because another leads where it led; and which nodes a leader has cut off.

Never while an epoch is open, for whoever is left may be needed then, and nobody's peers are kept out as long as the
quorum counts on the directory: a second failure finds everybody whom it may need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from holdfast.core.leadership import Situation, situation_of
from holdfast.core.observation import Observation
from holdfast.model.isolation import CutOff
from holdfast.model.register import Phase, Register
from holdfast.model.server import ServerStatus


class Reach(IntEnum):
    """Who reaches PostgreSQL from outside; each keeps out whom the one before it does."""

    ANYBODY = 0
    PEERS = 1
    """Replication and the investigator: no client."""
    INVESTIGATOR = 2
    """Of those outside of this host only who looks into what happened."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What an agent remembers of its node's leadership. ``epoch``: in which another was found to lead instead."""

    led: bool = False
    epoch: int | None = None


def remember(loss: Loss, o: Observation) -> Loss:
    """The same after one more look. A planned hand-over is no loss, and it ends when the node streams or leads."""
    register = o.register
    if register is None or o.trouble is not None:
        return loss
    if register.handover is not None:
        return replace(loss, led=False)
    led = loss.led or o.server.status is ServerStatus.PRIMARY
    leader = register.leader
    if leader is None:
        return replace(loss, led=led)
    if leader.node == o.node:
        return Loss(led=True)
    if has_rejoined(o):
        return Loss()
    if loss.epoch is None and (led or o.condemned or o.fits() is False):
        return Loss(epoch=register.epoch)
    return replace(loss, led=led)


def has_rejoined(o: Observation) -> bool:
    """Whether the node streams from the one that leads, with a log that fits."""
    return situation_of(o) is Situation.ATTACHED and o.server.streaming and o.fits() is True


def reach_of(loss: Loss, o: Observation) -> Reach | None:
    """Who may reach the server now; None: leave it as it is (nothing is known, or people asked for hands off)."""
    register = o.register
    if register is None or o.trouble is not None:
        return None
    if loss.epoch is None or register.leader is None or register.leader.node == o.node:
        return Reach.ANYBODY
    if o.policy.paused:
        return None
    return Reach.PEERS if o.member in register.committed.quorum.members else Reach.INVESTIGATOR


def why_lifted(o: Observation) -> str:
    """Why a node that was cut off is not any more, in words."""
    register = o.register
    if register is None or register.leader is None:
        return "an epoch is open, in which every node may be needed"
    if register.leader.node == o.node:
        return "it leads again"
    return f"it streams from {register.leader.node}" if has_rejoined(o) else "isolation.enabled is false"


# ---- what the leader has done about others --------------------------------------------------------------------------


def lost_between(before: Register, now: Register) -> str | None:
    """The node whose leadership another one's has replaced, unless it was planned or the quorum counts on the node."""
    former, leader = before.committed.leader, now.leader
    if leader is None or before.handover is not None or now.epoch <= before.committed.epoch:
        return None
    counted_on = {member.node for member in now.committed.quorum.members}
    return former.node if former.node not in {leader.node, *counted_on} else None


@dataclass(frozen=True, slots=True)
class Order:
    """The command is to be run for ``node``."""

    node: str
    lift: bool


def next_order(cut_off: Mapping[str, CutOff], o: Observation) -> Order | None:
    """What the leader of a serving epoch has to see to now: who is back is let in first."""
    register = o.register
    if register is None or register.phase is not Phase.SERVING or o.member is None or register.leader != o.member:
        return None
    back = {r.member.node for r in o.server.replicas if r.state == "streaming" and o.has_log_of_epoch(r.member)}
    welcome = {o.node, *back}
    for node in sorted(cut_off):
        if node in welcome or node not in register.voters:
            return Order(node, lift=True)
    return next((Order(node, lift=False) for node in sorted(cut_off) if not cut_off[node].ran), None)
