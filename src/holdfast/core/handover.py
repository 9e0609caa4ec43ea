"""Whether a switchover may begin, and to whom (docs/protocol.md, "Switchover")."""

from __future__ import annotations

from holdfast.core.membership import CATCH_UP_BYTES
from holdfast.core.observation import Observation
from holdfast.model.register import Phase


def successor(o: Observation, wanted: str | None) -> tuple[str | None, str]:
    """The node to hand over to, or None with the reason why not, in words for the person who asked."""
    register = o.register
    if register is None or register.phase is not Phase.SERVING:
        return None, "no primary serves now: wait until `holdfast status` shows one"
    if register.leader != o.member:
        return None, "this node does not lead: ask the primary's agent"
    if o.policy.paused:
        return None, "the cluster is paused: `holdfast resume` first"
    if register.handover is not None:
        return None, f"a switchover to {register.handover} is already under way"
    if wanted == o.node:
        return None, f"{wanted} is the primary already"
    if wanted is not None and wanted not in register.voters:
        return None, f"there is no node {wanted}; the nodes are {', '.join(register.voters)}"
    if wanted is not None and not o.policy.promotable(wanted):
        return None, f"{wanted} is not to be promoted by policy: `holdfast policy set {wanted}.promotable=true` first"
    own = o.server.position
    lag_bytes = {
        r.member.node: own.lsn - r.flush_lsn
        for r in o.server.replicas
        if own is not None and o.policy.promotable(r.member.node) and r.state == "streaming" and r.flush_lsn is not None
        and r.member in register.committed.quorum.members
    }  # fmt: skip
    if wanted is not None and wanted not in lag_bytes:
        return None, f"{wanted} is not a member that streams from this primary now (see `holdfast status`)"
    if not lag_bytes:
        return None, "no standby streams from this primary now"
    target = wanted or min(lag_bytes, key=lambda node: (lag_bytes[node], node))
    if lag_bytes[target] > CATCH_UP_BYTES:
        return None, f"{target} is {lag_bytes[target]} bytes behind: wait until it is within {CATCH_UP_BYTES}"
    if len(lag_bytes) < 2 and not o.policy.local_commits_allowed and len(register.voters) > 2:
        return None, "only one standby streams: after the switchover nobody could confirm a commit"
    return target, f"{target} streams {lag_bytes[target]} bytes behind"
