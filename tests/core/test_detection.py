"""From evidence to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.detection import INSIDE, OTHERS, has_room_elsewhere, judge, judge_own, verdict_rules
from holdfast.core.evidence import Probe, Sight
from holdfast.core.leadership import Duty
from holdfast.core.observation import Peer
from holdfast.model.report import ProxyOutcome, ProxySight, Source, Verdict, VerdictKind
from holdfast.model.server import ServerStatus
from holdfast.model.thresholds import Thresholds
from holdfast.model.vitals import Commits, Space, Vitals
from tests.core.builders import N1, NOW_MS, TIMEOUTS, peer

LONG_AGO_MS = NOW_MS - 60_000
ALIVE = Probe(answered_ms=NOW_MS)
WELL = Vitals(local=Commits(age_ms=100, latency_ms=2), quorum=Commits(age_ms=100, latency_ms=3), log_age_ms=100)
ROOMY = Space(10**12, 10**12, "n2's disk")
FULL = Space(1024, 10**12, "n1's disk")
STUCK_MS = 5000


def seen(agent: Peer, sql: Probe = ALIVE, **changes: object) -> Sight:
    plain = Sight(now_ms=NOW_MS, since_ms=LONG_AGO_MS, timeouts=TIMEOUTS, agent=agent, sql=sql)
    return replace(plain, **changes)  # type: ignore[arg-type]


def verdict_on(agent: Peer, sql: Probe = ALIVE, **changes: object) -> Verdict:
    return judge(N1, 1, seen(agent, sql, **changes))


def kind(agent: Peer, sql: Probe = ALIVE, **changes: object) -> VerdictKind:
    return verdict_on(agent, sql, **changes).kind


def leading(vitals: Vitals | None = WELL, answered_ms: int = NOW_MS) -> Peer:
    return peer(N1, answered_ms, status=ServerStatus.PRIMARY, vitals=vitals)


def own(status: ServerStatus, seen_alive: bool = True, vitals: Vitals | None = None) -> Verdict:
    return judge_own(N1, 1, status, seen_alive, seen(Peer(), Probe(), own=vitals))


def test_answers_on_all_paths_are_healthy() -> None:
    assert kind(leading()) is VerdictKind.HEALTHY
    assert kind(leading(vitals=None)) is VerdictKind.HEALTHY


def test_the_agents_word_counts_at_once() -> None:
    gone = peer(N1, status=ServerStatus.STOPPED)
    assert kind(gone, Probe(answered_ms=NOW_MS - 500)) is VerdictKind.DEAD


def test_a_server_that_was_not_started_yet_is_not_dead_at_once() -> None:
    starting = peer(N1, status=ServerStatus.STOPPED)
    assert kind(starting, Probe(), since_ms=NOW_MS - 100) is VerdictKind.UNKNOWN
    assert kind(starting, Probe(), since_ms=LONG_AGO_MS) is VerdictKind.DEAD


def test_another_directory_under_the_leaders_name_is_not_the_leader() -> None:
    assert kind(peer(replace(N1, incarnation="ffffffff"))) is VerdictKind.DEAD


def test_refused_on_both_paths_means_that_the_host_is_there_and_the_processes_are_not() -> None:
    refused = Peer(answered_ms=NOW_MS - 400, refused_ms=NOW_MS)
    assert kind(refused, Probe(answered_ms=NOW_MS - 400, refused_ms=NOW_MS)) is VerdictKind.DEAD


def test_an_agent_that_died_alone_is_no_reason() -> None:
    assert kind(Peer(answered_ms=LONG_AGO_MS, refused_ms=NOW_MS)) is VerdictKind.HEALTHY


@pytest.mark.parametrize(("silent_ms", "expected"), [(1499, VerdictKind.HEALTHY), (1500, VerdictKind.UNREACHABLE)])
def test_silence_on_every_path(silent_ms: int, expected: VerdictKind) -> None:
    last_ms = NOW_MS - silent_ms
    assert kind(Peer(answered_ms=last_ms), Probe(answered_ms=last_ms)) is expected


@pytest.mark.parametrize("sign", [{"sql": Probe(held_ms=NOW_MS)}, {"own": Vitals(upstream_age_ms=0)}])
def test_one_sign_of_life_on_any_path_is_enough(sign: dict[str, object]) -> None:
    before = Probe(answered_ms=NOW_MS - 2000)
    assert kind(Peer(), before) is VerdictKind.UNREACHABLE
    assert judge(N1, 1, replace(seen(Peer(), before), **sign)).kind is not VerdictKind.UNREACHABLE  # type: ignore[arg-type]


def test_an_agent_that_answers_beside_a_server_that_lets_nobody_in() -> None:
    assert kind(leading(), Probe(answered_ms=NOW_MS - TIMEOUTS.hung_ms)) is VerdictKind.HUNG
    assert kind(leading(), Probe(answered_ms=NOW_MS - TIMEOUTS.hung_ms + 1)) is VerdictKind.HEALTHY


def test_a_frozen_postmaster_is_hung_although_held_sessions_are_quick() -> None:
    frozen = Probe(answered_ms=NOW_MS - STUCK_MS, latency_ms=3, held_ms=NOW_MS, held_latency_ms=1)
    assert kind(leading(), frozen) is VerdictKind.HUNG


@pytest.mark.parametrize(
    "slow",
    [
        {"vitals": replace(WELL, local=Commits(age_ms=100, latency_ms=900))},
        {"vitals": replace(WELL, sessions=300, sessions_max=300)},
        {"sql": Probe(answered_ms=NOW_MS - STUCK_MS, held_ms=NOW_MS, held_latency_ms=700)},
    ],
)
def test_slowness_that_makes_progress_is_an_overload_and_never_a_failover(slow: dict[str, object]) -> None:
    agent = leading(slow.get("vitals", WELL))  # type: ignore[arg-type]
    crowded = slow.get("sql", Probe(answered_ms=NOW_MS - STUCK_MS))
    verdict = verdict_on(agent, crowded)  # type: ignore[arg-type]
    assert (verdict.kind, verdict.rule) == (VerdictKind.OVERLOADED, "verdict.crowded-out")
    assert not verdict.calls_for_failover


def test_slow_answers_are_an_overload() -> None:
    assert kind(leading(), Probe(answered_ms=NOW_MS, latency_ms=800)) is VerdictKind.OVERLOADED
    assert kind(leading(replace(WELL, local=Commits(100, 600)))) is VerdictKind.OVERLOADED


def stuck(**changes: object) -> Vitals:
    plain = replace(WELL, local=Commits(age_ms=STUCK_MS + 500, latency_ms=2, pending_ms=STUCK_MS), log_age_ms=STUCK_MS)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_sessions_that_are_accepted_and_commits_that_are_not() -> None:
    assert kind(leading(stuck())) is VerdictKind.HUNG
    assert kind(leading(stuck(log_waits=3))) is VerdictKind.STORAGE_STALLED
    assert kind(leading(stuck(storage_ms=4000))) is VerdictKind.STORAGE_STALLED
    assert own(ServerStatus.PRIMARY, vitals=stuck(log_waits=3)).kind is VerdictKind.STORAGE_STALLED


CERTAIN_MS = TIMEOUTS.storage_certain_ms
STILL = replace(
    WELL,
    local=Commits(age_ms=CERTAIN_MS + 500, latency_ms=2, pending_ms=CERTAIN_MS),
    log_age_ms=CERTAIN_MS,
    storage_pending_ms=CERTAIN_MS,
    disk_still_ms=CERTAIN_MS,
)


def test_a_disk_on_which_nothing_moves_is_certain_earlier() -> None:
    assert kind(leading(STILL)) is VerdictKind.STORAGE_STALLED
    assert own(ServerStatus.PRIMARY, vitals=STILL).calls_for_failover


@pytest.mark.parametrize(
    "moves",
    [
        {"disk_still_ms": 250},
        {"disk_still_ms": None},
        {"storage_pending_ms": 100},
        {"storage_pending_ms": None},
        {"log_age_ms": 100},
        {"local": Commits(age_ms=700, latency_ms=600)},
    ],
)
def test_a_disk_on_which_something_moves_is_a_slow_one(moves: dict[str, object]) -> None:
    slow = replace(STILL, **moves)  # type: ignore[arg-type]
    assert not verdict_on(leading(slow)).calls_for_failover
    assert not own(ServerStatus.PRIMARY, vitals=slow).calls_for_failover


def test_a_disk_that_holds_up_the_agents_write_alone_is_no_reason() -> None:
    assert kind(leading(replace(WELL, storage_ms=60_000))) is VerdictKind.HEALTHY


def test_a_heartbeat_that_hangs_while_the_log_moves_is_an_overload() -> None:
    assert kind(leading(stuck(log_age_ms=50, log_waits=3))) is VerdictKind.OVERLOADED


def test_only_the_quorum_row_hangs() -> None:
    waiting = replace(WELL, quorum=Commits(age_ms=STUCK_MS, pending_ms=STUCK_MS))
    verdict = verdict_on(leading(waiting))
    assert (verdict.kind, verdict.calls_for_failover) == (VerdictKind.STANDBYS_AT_FAULT, False)
    assert own(ServerStatus.PRIMARY, vitals=waiting).kind is VerdictKind.STANDBYS_AT_FAULT


@pytest.mark.parametrize(
    "full",
    [
        replace(WELL, data_space=FULL, log_space=ROOMY),
        replace(WELL, data_space=ROOMY, log_space=FULL),
        replace(WELL, data_space=FULL, local=Commits(error="could not extend file: No space left on device")),
    ],
)
def test_a_full_disk_calls_for_a_failover_only_if_a_standby_has_room_of_its_own(full: Vitals) -> None:
    assert verdict_on(leading(full)).kind is VerdictKind.DISK_FULL
    assert not verdict_on(leading(full)).calls_for_failover
    assert verdict_on(leading(full), room_elsewhere=True).calls_for_failover


def test_whose_room_is_whose() -> None:
    here = Vitals(data_space=FULL, log_space=FULL)
    there = Vitals(data_space=ROOMY, log_space=ROOMY)
    limits = Thresholds()
    assert has_room_elsewhere(here, [there], limits)
    assert not has_room_elsewhere(here, [], limits)
    assert not has_room_elsewhere(here, [None, Vitals()], limits), "what is not known does not count"
    assert not has_room_elsewhere(here, [replace(there, log_space=replace(ROOMY, file_system="n1's disk"))], limits)
    assert not has_room_elsewhere(here, [replace(there, data_space=replace(ROOMY, free_bytes=1))], limits)


def test_a_leadership_that_has_just_begun_is_given_its_time() -> None:
    assert kind(Peer(), Probe(), since_ms=NOW_MS - 100) is VerdictKind.UNKNOWN


def test_the_own_agent_knows() -> None:
    assert own(ServerStatus.STOPPED).kind is VerdictKind.DEAD
    assert own(ServerStatus.STOPPED, seen_alive=False).kind is VerdictKind.UNKNOWN
    assert own(ServerStatus.PRIMARY).kind is VerdictKind.HEALTHY
    assert own(ServerStatus.ABSENT, seen_alive=False).kind is VerdictKind.DEAD


def test_a_leader_that_was_stopped_to_hand_over_is_not_dead() -> None:
    stopped = peer(N1, status=ServerStatus.STOPPED, duty=Duty.YIELD.value)
    assert kind(stopped, Probe(refused_ms=NOW_MS)) is VerdictKind.UNKNOWN
    silent = replace(stopped, answered_ms=NOW_MS - 5000)
    assert kind(silent, Probe(refused_ms=NOW_MS)) is VerdictKind.UNREACHABLE
    yielding = judge_own(N1, 1, ServerStatus.STOPPED, True, seen(Peer(), Probe()), yielding=True)
    assert yielding.kind is VerdictKind.UNKNOWN
    assert judge_own(N1, 1, ServerStatus.ABSENT, True, seen(Peer()), yielding=True).kind is VerdictKind.DEAD


def test_a_candidate_that_recovers_is_not_hung() -> None:
    starting = peer(N1, status=ServerStatus.STARTING)
    late = Probe(answered_ms=LONG_AGO_MS)
    assert kind(starting, late, is_candidate=True) is VerdictKind.HEALTHY
    assert kind(starting, late) is VerdictKind.HUNG


def test_a_verdict_carries_every_piece_of_evidence_with_its_age() -> None:
    vitals = replace(WELL, data_space=ROOMY, log_space=FULL, sessions=7, active_sessions=2, sessions_max=300)
    sight = seen(
        leading(vitals, answered_ms=NOW_MS - 40),
        Probe(NOW_MS - 30, latency_ms=5, held_ms=NOW_MS - 20, held_latency_ms=1),
        own=Vitals(upstream_age_ms=10, local_seen_age_ms=300, quorum_seen_age_ms=310),
        proxies=(ProxySight("p1", "n1", 1, ProxyOutcome.REFUSED, 4, NOW_MS - 60),),
    )
    readings = {r.source: (r.age_ms, r.says) for r in judge(N1, 1, sight).readings}
    assert readings[Source.AGENT] == (40, "says that PostgreSQL is primary")
    assert readings[Source.FRESH_SESSION] == (30, "answered in 5 ms")
    assert readings[Source.HELD_SESSION] == (20, "answered in 1 ms")
    assert readings[Source.LOCAL_COMMIT] == (140, "took 2 ms")
    assert readings[Source.REPLICATION] == (10, "heard of the primary; local row 300 ms old; quorum row 310 ms old")
    assert readings[Source.PROXY] == (60, "refused a connection, 4 clients wait")
    assert "7 of 300 sessions, 2 active" in readings[Source.LOAD][1]
    assert "log 0 MB free, low" in readings[Source.DISK][1]


def test_a_commit_that_is_under_way_for_long_is_read_as_waiting() -> None:
    readings = {r.source: r.says for r in verdict_on(leading(stuck())).readings}
    assert readings[Source.LOCAL_COMMIT] == f"waiting for {STUCK_MS} ms"
    just_begun = replace(WELL, local=Commits(age_ms=500, latency_ms=2, pending_ms=3))
    readings = {r.source: r.says for r in verdict_on(leading(just_begun)).readings}
    assert readings[Source.LOCAL_COMMIT] == "took 2 ms"


def test_every_rule_has_an_id_of_its_own_and_the_last_of_each_table_always_applies() -> None:
    rules = verdict_rules()
    assert len({rule.id for rule in rules}) == len(rules) == len({*OTHERS, *INSIDE})
    assert (OTHERS[-1].kind, INSIDE[-1].kind) == (VerdictKind.HEALTHY, VerdictKind.HEALTHY)
