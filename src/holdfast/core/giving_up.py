"""When a node gives its log up for a candidate whose epoch does not serve yet (docs/protocol.md, "Join")."""

from __future__ import annotations

from holdfast.core.observation import Observation
from holdfast.core.quorum import recruits_suffice
from holdfast.core.rules import planned_quorum
from holdfast.model.register import Member, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus


def is_enough_alone(register: Register) -> bool:
    """Whether the candidate can be recruited again with nobody's help: only the committed leader can.

    It has every acknowledged write, so that nobody needs the log that is given up for it, now or in a later epoch.
    """
    return register.candidate is not None and register.candidate == register.committed.leader


def are_enough_without(o: Observation, register: Register) -> bool:
    """Whether the candidate and those who joined suffice for a later epoch, without this node.

    Of those who joined only the ones are counted whose names come after its own: several nodes may ask themselves this
    at the same time, each without the others' answers, and whom the last of them counts on, all others do, too. Each
    must have said lately that it still has the directory with which it joined.
    """
    own = o.member.node if o.member is not None else o.node
    joined = [r.member for r in o.recruits if r.epoch == register.epoch]
    later = {member for member in joined if member.node > own and _heard_of(o, member) is not None}
    return register.candidate is not None and recruits_suffice(register.committed, later | {register.candidate})


def gives_up(o: Observation, register: Register) -> bool:
    """Whether this node, whose log does not fit the candidate's, takes it back now instead of after the barrier.

    Else logs could wait for each other for ever: one of them is the candidate's, and nobody else confirms it. The
    candidate must lead already, or there would be nothing to rewind to, and those who fit have had their time.
    """
    candidate = register.candidate
    if candidate is None or not (is_enough_alone(register) or are_enough_without(o, register)):
        return False
    if o.now_ms - o.progress_ms < o.timeouts.give_up_grace_ms:
        return False
    report = leads_now(o, register, candidate)
    if report is None:
        return False
    streaming = frozenset(r.member for r in report.replicas if r.state == "streaming")
    quorum = planned_quorum(o, register, candidate, streaming)
    if quorum is None:
        return True  # too few have a log that fits, whoever comes
    return is_enough_alone(register) and len(quorum.members & streaming) < quorum.k


def leads_now(o: Observation, register: Register, candidate: Member) -> NodeReport | None:
    """What the candidate says, if it said lately that it is promoted."""
    report = _heard_of(o, candidate)
    if report is None:
        return None
    promoted = report.position is not None and report.position.timeline == register.epoch
    return report if report.status is ServerStatus.PRIMARY and promoted else None


def _heard_of(o: Observation, member: Member) -> NodeReport | None:
    """What the node said lately, if it has this directory still."""
    peer = o.peers.get(member.node)
    if peer is None or peer.report is None or peer.answered_ms is None:
        return None
    fresh_ms = 2 * o.timeouts.heartbeat_interval_ms + o.timeouts.peer_timeout_ms
    return peer.report if o.now_ms - peer.answered_ms <= fresh_ms and peer.report.member == member else None
