"""What an agent remembers from look to look."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.evidence import Probe
from holdfast.core.observation import Peer, RegisterTrouble
from holdfast.model.lsn import Lsn
from holdfast.model.register import NodeRecord, NodeState
from holdfast.model.report import VerdictKind
from holdfast.model.server import ServerStatus, ServerView
from holdfast.node.observer import Look, Observer
from holdfast.node.promise import Promise
from tests.core.builders import BOTH, N1, N2, N3, NOW_MS, TIMEOUTS, at, peer, primary, register, standby, streaming

PROMISE = Promise("main", "id", 1, N1.incarnation)
LEADER = NodeRecord(N1, NodeState.PRIMARY, 1, "n1", 1, "http://n1")


def look(server: ServerView, now_ms: int = NOW_MS, peers: dict[str, Peer] | None = None) -> Look:
    return Look(
        now_ms=now_ms, server=server, system_identifier="sys", promise=PROMISE, creating=False, rebuilding=False,
        register=register(), register_revision=7, unreadable=False, recruits=(), nodes={"n1": LEADER},
        peers=peers or {}, probe=Probe(),
    )  # fmt: skip


def leading(names: str, lsn: int) -> ServerView:
    return primary(1, lsn, names, (streaming(N2, lsn), streaming(N3, lsn)))


def test_what_was_settled_is_not_once_the_names_change_by_whomever() -> None:
    """A failure after PostgreSQL took the new names must not leave a position from before them."""
    observer = Observer("n1", TIMEOUTS)
    assert observer.observe(look(leading(str(BOTH), 100))).settled_lsn is None
    assert observer.observe(look(leading(str(BOTH), 110), NOW_MS + 200)).settled_lsn == Lsn(110)
    narrower = "ANY 1 (n2_00000002)"
    assert observer.observe(look(leading(narrower, 500), NOW_MS + 300)).settled_lsn is None
    assert observer.observe(look(leading(narrower, 600), NOW_MS + 350)).settled_lsn is None
    assert observer.observe(look(leading(narrower, 700), NOW_MS + 400)).settled_lsn == Lsn(700)


def test_who_was_frozen_does_not_take_its_own_silence_for_the_leaders() -> None:
    observer = Observer("n2", TIMEOUTS)

    def seen(now_ms: int, heard_ms: int) -> VerdictKind:
        heard = peer(N1, heard_ms, status=ServerStatus.PRIMARY, position=at(1, 200))
        following = replace(look(standby(1, 100, "n1:1"), now_ms, {"n1": heard}), probe=Probe(answered_ms=heard_ms))
        verdict = observer.observe(replace(following, promise=replace(PROMISE, incarnation=N2.incarnation))).verdict
        assert verdict is not None
        return verdict.kind

    assert seen(NOW_MS, NOW_MS) is VerdictKind.HEALTHY
    woken_ms = NOW_MS + 60_000
    assert seen(woken_ms, NOW_MS) is VerdictKind.HEALTHY
    last_ms = woken_ms + TIMEOUTS.silence_ms
    for now_ms in range(woken_ms, last_ms, TIMEOUTS.tick_interval_ms):
        assert seen(now_ms, NOW_MS) is VerdictKind.HEALTHY
    assert seen(last_ms, NOW_MS) is VerdictKind.UNREACHABLE


def test_who_follows_and_does_not_stream_is_started_again_then_cloned() -> None:
    observer = Observer("n2", TIMEOUTS)
    late_ms = TIMEOUTS.rejoin_stream_ms

    def deaf(now_ms: int, *, leader_answers: bool = True) -> Look:
        server = replace(standby(1, 100, "n1:1"), streaming=False)
        answered = peer(N1, now_ms, status=ServerStatus.PRIMARY, position=at(1, 200))
        seen = replace(answered, primary_ms=now_ms if leader_answers else None)
        return replace(look(server, now_ms, {"n1": seen}), promise=replace(PROMISE, incarnation=N2.incarnation))

    assert not observer.observe(deaf(NOW_MS)).stuck
    o = observer.observe(deaf(NOW_MS + late_ms))
    assert (o.stuck, o.condemned) == (True, False)
    observer.started()
    assert not observer.observe(deaf(NOW_MS + late_ms + 1)).stuck
    o = observer.observe(deaf(NOW_MS + 2 * late_ms + 1))
    assert (o.stuck, o.condemned) == (False, True)
    observer.cloned()
    assert not observer.observe(deaf(NOW_MS + 2 * late_ms + 2)).condemned
    patient = Observer("n2", TIMEOUTS)
    patient.observe(deaf(NOW_MS, leader_answers=False))
    assert not patient.observe(deaf(NOW_MS + late_ms, leader_answers=False)).stuck


def test_a_register_from_before_is_not_obeyed_within_its_epoch_either() -> None:
    """A store put back to a backup names a quorum that has changed since; an agent started anew knows it, too."""
    older = register()
    newer = older.requorumed(BOTH)
    before, now = look(standby(1, 100, "n1:1")), replace(look(standby(1, 100, "n1:1")), register=newer)
    observer = Observer("n2", TIMEOUTS)
    assert observer.observe(before).trouble is None
    assert observer.observe(now).trouble is None
    assert observer.observe(before).trouble is RegisterTrouble.OLDER_THAN_SEEN
    assert observer.observe(now).trouble is None
    remembered = replace(PROMISE, epoch=1, generation=newer.generation)
    assert (
        Observer("n2", TIMEOUTS).observe(replace(before, promise=remembered)).trouble is RegisterTrouble.OLDER_THAN_SEEN
    )
    assert Observer("n2", TIMEOUTS).observe(replace(now, promise=remembered)).trouble is None


def test_a_rewound_node_is_given_its_time_from_when_it_is_up() -> None:
    """What the rewind made it replay may take longer than that; a copy of everything takes longer still."""
    late_ms = TIMEOUTS.rejoin_stream_ms
    up_ms = NOW_MS + 3 * late_ms

    def seen(server: ServerView, now_ms: int) -> Look:
        answers = replace(peer(N1, now_ms, status=ServerStatus.PRIMARY, position=at(1, 200)), primary_ms=now_ms)
        return replace(look(server, now_ms, {"n1": answers}), promise=replace(PROMISE, incarnation=N2.incarnation))

    rewound = Observer("n2", TIMEOUTS)
    rewound.rewound()
    rewound.starts(NOW_MS)
    rewound.started()
    up = replace(standby(1, 100, "n1:1"), streaming=False)
    for now_ms in range(NOW_MS, up_ms, late_ms // 4):
        rewound.observe(seen(ServerView(ServerStatus.STARTING), now_ms))
    assert not rewound.observe(seen(up, up_ms)).condemned
    assert not rewound.observe(seen(up, up_ms + late_ms - 1)).condemned
    assert rewound.observe(seen(up, up_ms + late_ms)).condemned
    assert rewound.observe(seen(ServerView(ServerStatus.STOPPED), up_ms + late_ms + 1)).condemned

    broken = Observer("n2", TIMEOUTS)
    broken.rewound()
    broken.starts(NOW_MS)  # and comes to nothing, again and again
    broken.starts(NOW_MS + late_ms // 2)
    assert not broken.observe(seen(ServerView(ServerStatus.STOPPED), NOW_MS + late_ms - 1)).condemned
    assert broken.observe(seen(ServerView(ServerStatus.STOPPED), NOW_MS + late_ms)).condemned

    untried = Observer("n2", TIMEOUTS)
    untried.rewound()
    assert not untried.observe(seen(ServerView(ServerStatus.STOPPED), NOW_MS + 10 * late_ms)).condemned
    untried.starts(NOW_MS + 10 * late_ms)
    untried.rewound()  # once more: it is another log now
    assert not untried.observe(seen(ServerView(ServerStatus.STOPPED), NOW_MS + 20 * late_ms)).condemned
