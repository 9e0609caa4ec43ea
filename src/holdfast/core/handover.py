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
    if wanted is not None and wanted not in register.data_nodes:
        return None, f"there is no node {wanted}; the nodes are {', '.join(register.data_nodes)}"
    if wanted is not None and not o.policy.promotable(wanted):
        return None, f"{wanted} is not to be promoted by policy: `holdfast policy set {wanted}.promotable=true` first"
    unfit = {name: words for name in register.data_nodes if (words := unfitness(o, name)) is not None}
    if wanted is not None and wanted in unfit:
        return None, f"{wanted} {unfit[wanted]}"
    own = o.server.position
    lag_bytes = {
        r.member.node: own.lsn - r.flush_lsn
        for r in o.server.replicas
        if own is not None and o.policy.promotable(r.member.node) and r.state == "streaming" and r.flush_lsn is not None
        and r.member in register.committed.quorum.members and r.member.node not in unfit
    }  # fmt: skip
    if wanted is not None and wanted not in lag_bytes:
        return None, f"{wanted} is not a member that streams from this primary now (see `holdfast status`)"
    if not lag_bytes:
        return None, "no standby streams from this primary now"
    target = wanted or min(lag_bytes, key=lambda node: (lag_bytes[node], node))
    if lag_bytes[target] > CATCH_UP_BYTES:
        return None, f"{target} is {lag_bytes[target]} bytes behind: wait until it is within {CATCH_UP_BYTES}"
    if len(lag_bytes) < 2 and not o.policy.local_commits_allowed and len(register.data_nodes) > 2:
        return None, "only one standby streams: after the switchover nobody could confirm a commit"
    return target, f"{target} streams {lag_bytes[target]} bytes behind"


def unfitness(o: Observation, node: str) -> str | None:
    """Why a node could not lead although it may stream, in words that follow its name; None if nothing speaks against.

    A node that never said anything is told by its not streaming, not here. One that fell silent may seem to stream for
    a while longer: a host without power resets no connection.
    """
    peer = o.peers.get(node)
    report = peer.report if peer is not None else None
    if report is None:
        return None
    if report.alarm is not None:
        return f"raises an alarm: {report.alarm}"
    silent_ms = o.now_ms - peer.answered_ms if peer is not None and peer.answered_ms is not None else 0
    if silent_ms >= o.timeouts.silence_ms:
        return f"has not answered for {silent_ms} ms"
    if not report.store_connected:
        return "cannot reach the store, so it could not take over"
    return None


def steps(o: Observation, target: str) -> tuple[str, ...]:
    """What a switchover to ``target`` would do, in order, for people."""
    t = o.timeouts
    return (
        f"1. a checkpoint on {o.node}, and proxies let go of its sessions that nobody uses, so that its stop is short",
        "2. proxies hold new statements",
        f"3. transactions that run may end, for at most {t.handover_drain_ms} ms; then they end with an error",
        f"4. {o.node} stops in good order while {target} still streams, within {t.handover_stop_ms} ms",
        f"5. once {target} has the last record, an epoch is opened, and {target} is promoted in it",
        f"6. {o.node} follows it, and nothing is rewound",
        f"If {target} does not get that far in time, {o.node} starts again and goes on leading.",
    )
