"""What an agent tells: its record in the store, and its report to peers and people."""

from __future__ import annotations

from holdfast import __version__
from holdfast.core.leadership import Decision, Duty, Situation
from holdfast.core.observation import Observation
from holdfast.model.register import Member, NodeRecord, NodeState
from holdfast.model.report import NodeReport, ReplicaReport
from holdfast.model.server import ABSENT_SERVER, ServerStatus
from holdfast.model.settings import NodeSettings
from holdfast.model.vitals import Vitals
from holdfast.node.coordinator import Coordinator
from holdfast.node.registry import Registry

NO_INCARNATION = "00000000"
_STATES = {
    ServerStatus.STANDBY: NodeState.STANDBY,
    ServerStatus.PRIMARY: NodeState.PRIMARY,
    ServerStatus.STARTING: NodeState.STARTING,
}


def record_of(settings: NodeSettings, o: Observation | None, epoch: int) -> NodeRecord:
    """What others need to reach this node. ``epoch``: the one that it leads or follows in; 0 if neither."""
    state = NodeState.STOPPED
    if o is not None:
        state = NodeState.REBUILDING if o.rebuilding else _STATES.get(o.server.status, NodeState.STOPPED)
    return NodeRecord(
        member=(o.member if o is not None else None) or Member(settings.node.name, NO_INCARNATION),
        state=state,
        epoch=epoch,
        postgres_host=settings.postgres.host,
        postgres_port=settings.postgres.port,
        api_url=f"http://{settings.api.host}:{settings.api.port}",
    )


def report_of(
    node: str,
    o: Observation | None,
    decision: Decision | None,
    registry: Registry,
    hands: Coordinator,
    vitals: Vitals | None,
    system_identifier: str | None,
    isolated: str | None = None,
) -> NodeReport:
    """The node, as its agent last saw it."""
    server = o.server if o is not None else ABSENT_SERVER
    own_end = o.own_end if o is not None else None
    return NodeReport(
        node=node,
        member=o.member if o is not None else None,
        cluster_id=o.cluster_id if o is not None else None,
        promised=o.promised if o is not None else 0,
        status=server.status,
        situation=decision.situation.value if decision is not None else Situation.ABSENT.value,
        duty=decision.duty.value if decision is not None else Duty.AWAIT.value,
        rule=decision.rule.id if decision is not None else "",
        position=own_end or server.position,
        replay_lsn=server.replay_lsn,
        history=server.history,
        upstream=server.upstream_host,
        streaming=server.streaming,
        synchronous_names=server.synchronous_names,
        replicas=tuple(ReplicaReport(r.member, r.state, r.flush_lsn) for r in server.replicas),
        register_epoch=registry.register.epoch if registry.register is not None else 0,
        store_connected=registry.connected,
        verdict=o.verdict if o is not None else None,
        alarm=hands.alarm,
        version=__version__,
        progress=hands.progress,
        vitals=vitals,
        system_identifier=system_identifier,
        waiting=hands.waiting,
        waiting_ms=_waited_ms(hands, o),
        isolated=isolated,
    )


def _waited_ms(hands: Coordinator, o: Observation | None) -> int | None:
    if hands.waiting is None or hands.waiting_since_ms is None or o is None:
        return None
    return max(0, round(o.now_ms - hands.waiting_since_ms))
