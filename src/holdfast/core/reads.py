"""When nobody can be shown what the old leader has any more (docs/protocol.md, "Reads")."""

from __future__ import annotations

from holdfast.core.durability import CLOCK_DRIFT_PERCENT, is_local
from holdfast.core.observation import Observation
from holdfast.model.register import Register
from holdfast.model.server import ServerStatus

_NO_PRIMARY = (ServerStatus.STOPPED, ServerStatus.ABSENT, ServerStatus.STARTING, ServerStatus.STANDBY)


def old_reads_are_over(o: Observation, register: Register) -> bool:
    """Whether a candidate may serve without any proxy still showing its client the old leader's state.

    The old leader is known to be stopped; or every living proxy has obeyed this epoch, and those that lost the store
    have lost the old leader's word too: what its quorum confirmed last, it sent before the recruits fell silent.
    """
    if register.committed.epoch == 0 or is_fenced(o, register):
        return True
    if any(epoch < register.epoch for epoch in o.obeying.values()):
        return False
    if is_local(register.committed.quorum):
        return True  # the candidate was chosen when the leader's lease was over
    members = register.committed.quorum.members
    silent_ms = [r.silent_ms for r in o.recruits if r.epoch == register.epoch and r.member in members]
    freshness_ms = o.timeouts.freshness_ms * (100 + CLOCK_DRIFT_PERCENT) // 100
    return o.now_ms - o.phase_since_ms + min(silent_ms, default=0) >= freshness_ms


def is_fenced(o: Observation, register: Register) -> bool:
    """Whether the committed leader's server is known to have ended, by its own agent, which obeys this epoch.

    It promises only after that end. Started again it is a standby: no session of before lives there, and a proxy that
    still takes it for the primary refuses it.
    """
    leader = register.committed.leader
    joined = o.recruit(leader)
    if leader == o.member or (joined is not None and joined.epoch == register.epoch):
        return True
    peer = o.peers.get(leader.node)
    report = peer.report if peer is not None else None
    if report is None or report.promised < register.epoch:
        return False
    return report.member == leader and report.status in _NO_PRIMARY
