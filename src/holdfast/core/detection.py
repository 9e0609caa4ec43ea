"""From evidence to a verdict on the one that leads (docs/protocol.md, "Verdicts on the primary")."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.observation import Peer
from holdfast.model.register import Member
from holdfast.model.report import Verdict, VerdictKind
from holdfast.model.server import ServerStatus
from holdfast.model.timeouts import Timeouts


@dataclass(frozen=True, slots=True)
class Probe:
    """What fresh sessions on the primary met, from one observer."""

    answered_ms: int | None = None
    refused_ms: int | None = None


def judge(
    about: Member,
    epoch: int,
    now_ms: int,
    since_ms: int,
    agent: Peer,
    sql: Probe,
    timeouts: Timeouts,
    is_candidate: bool = False,
) -> Verdict:
    """One observer's verdict. ``since_ms``: when it began to observe this leadership."""

    def verdict(kind: VerdictKind, evidence: str) -> Verdict:
        return Verdict(about, epoch, kind, evidence)

    fresh_ms = 2 * timeouts.heartbeat_interval_ms + timeouts.peer_timeout_ms
    if agent.report is not None and agent.answered_ms is not None and now_ms - agent.answered_ms <= fresh_ms:
        if agent.report.member is not None and agent.report.member != about:
            return verdict(VerdictKind.DEAD, "its agent has another data directory")
        if agent.report.status in (ServerStatus.STOPPED, ServerStatus.ABSENT):
            seen_alive = max(agent.primary_ms or 0, sql.answered_ms or 0) >= since_ms
            if not seen_alive and now_ms - since_ms < timeouts.hung_ms:
                return verdict(VerdictKind.UNKNOWN, "its PostgreSQL has not been started yet")
            return verdict(VerdictKind.DEAD, "its agent says that PostgreSQL is gone")
    if _closed(agent.refused_ms, agent.answered_ms) and _closed(sql.refused_ms, sql.answered_ms):
        return verdict(VerdictKind.DEAD, "its host refuses connections to PostgreSQL and to the agent")
    last_sign_ms = max(agent.answered_ms or 0, sql.answered_ms or 0, since_ms)
    if now_ms - last_sign_ms >= timeouts.silence_ms:
        return verdict(VerdictKind.UNREACHABLE, f"no answer on any path for {now_ms - last_sign_ms} ms")
    if is_candidate and agent.report is not None and agent.report.status is ServerStatus.STARTING:
        return verdict(VerdictKind.HEALTHY, "is starting; the phase's time-out decides")
    last_session_ms = max(sql.answered_ms or 0, since_ms)
    if now_ms - last_session_ms >= timeouts.hung_ms:
        return verdict(VerdictKind.HUNG, f"PostgreSQL accepts no session for {now_ms - last_session_ms} ms")
    if sql.answered_ms is None and agent.answered_ms is None:
        return verdict(VerdictKind.UNKNOWN, "not observed yet")
    return verdict(VerdictKind.HEALTHY, "answers")


def judge_own(about: Member, epoch: int, status: ServerStatus, seen_alive: bool) -> Verdict:
    """The leader's own agent knows first when its process is gone. Not started yet is not gone."""
    if status is ServerStatus.STOPPED and not seen_alive:
        return Verdict(about, epoch, VerdictKind.UNKNOWN, "the own PostgreSQL has not been started yet")
    if status in (ServerStatus.STOPPED, ServerStatus.ABSENT):
        return Verdict(about, epoch, VerdictKind.DEAD, "the own PostgreSQL is gone")
    return Verdict(about, epoch, VerdictKind.HEALTHY, "the own PostgreSQL runs")


def _closed(refused_ms: int | None, answered_ms: int | None) -> bool:
    return refused_ms is not None and refused_ms > (answered_ms or 0)
