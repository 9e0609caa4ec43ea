"""Values for the tests of decisions, valid unless a test says otherwise."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.observation import Observation, Peer
from holdfast.model.lsn import Lsn, Position
from holdfast.model.register import (
    BARRIER_NAME,
    NO_QUORUM,
    Configuration,
    Member,
    Phase,
    Quorum,
    Recruit,
    Register,
)
from holdfast.model.report import NodeReport, Verdict, VerdictKind
from holdfast.model.server import Replica, ServerStatus, ServerView
from holdfast.model.timeouts import Timeouts

N1, N2, N3 = (Member(f"n{i}", f"0000000{i}") for i in (1, 2, 3))
TIMEOUTS = Timeouts()
NOW_MS = 1_000_000
BOTH = Quorum(frozenset({N2, N3}), 1)
BARRIER = f"ANY 1 ({BARRIER_NAME})"


def register(epoch: int = 1, phase: Phase = Phase.SERVING, candidate: Member | None = None) -> Register:
    """N1 led last, in epoch 1, with ANY 1 (N2, N3)."""
    committed = Configuration(N1, 1, BOTH)
    return Register("main", "id", "sys", epoch, phase, candidate, ("n1", "n2", "n3"), committed)


def new_register() -> Register:
    """A cluster that N1 has just created."""
    nobody = Configuration(N1, 0, NO_QUORUM)
    return Register("main", "id", "sys", 1, Phase.PROMOTING, N1, ("n1", "n2", "n3"), nobody)


def at(timeline: int, lsn: int) -> Position:
    return Position(timeline, Lsn(lsn))


def primary(timeline: int, lsn: int, names: str = str(BOTH), replicas: tuple[Replica, ...] = ()) -> ServerView:
    return ServerView(ServerStatus.PRIMARY, position=at(timeline, lsn), synchronous_names=names, replicas=replicas)


def standby(timeline: int, lsn: int, upstream: str | None = None) -> ServerView:
    return ServerView(
        ServerStatus.STANDBY,
        position=at(timeline, lsn),
        replay_lsn=Lsn(lsn),
        upstream_host=upstream,
        walreceiver=upstream is not None,
        streaming=upstream is not None,
        synchronous_names=BARRIER,
    )


def streaming(member: Member, flush: int) -> Replica:
    return Replica(member, "streaming", Lsn(flush), True)


def recruit(member: Member, epoch: int, timeline: int, lsn: int) -> Recruit:
    return Recruit(member, epoch, at(timeline, lsn), ())


def report(member: Member, **changes: object) -> NodeReport:
    plain = NodeReport(
        node=member.node,
        member=member,
        cluster_id="id",
        promised=1,
        status=ServerStatus.STANDBY,
        situation="attached",
        duty="follow",
        rule="follow.steady",
        position=at(1, 100),
        replay_lsn=Lsn(100),
        history=(),
        upstream=None,
        streaming=True,
        synchronous_names=None,
        replicas=(),
        register_epoch=1,
        store_connected=True,
        verdict=None,
        alarm=None,
        version="0",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def peer(member: Member, answered_ms: int = NOW_MS, **changes: object) -> Peer:
    return Peer(report(member, **changes), answered_ms=answered_ms, asked_ms=answered_ms)


def verdict(kind: VerdictKind, about: Member = N1, epoch: int = 1) -> Verdict:
    return Verdict(about, epoch, kind, "as the test says")


def observation(member: Member | None = N2, **changes: object) -> Observation:
    """A standby of N1 in a healthy cluster of three."""
    plain = Observation(
        now_ms=NOW_MS,
        node=member.node if member is not None else "n2",
        timeouts=TIMEOUTS,
        member=member,
        promised=1,
        cluster_id="id",
        remembered=(99, 0),
        server=standby(1, 100, "n1:1"),
        lead_address="n1:1",
        register=register(),
        phase_since_ms=NOW_MS - 60_000,
        progress_ms=NOW_MS - 60_000,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
