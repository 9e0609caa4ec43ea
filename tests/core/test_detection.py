"""From evidence to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.detection import Probe, judge, judge_own
from holdfast.core.observation import Peer
from holdfast.model.report import VerdictKind
from holdfast.model.server import ServerStatus
from tests.core.builders import N1, NOW_MS, TIMEOUTS, peer

LONG_AGO_MS = NOW_MS - 60_000
ALIVE = Probe(answered_ms=NOW_MS)


def kind(agent: Peer, sql: Probe, since_ms: int = LONG_AGO_MS) -> VerdictKind:
    return judge(N1, 1, NOW_MS, since_ms, agent, sql, TIMEOUTS).kind


def test_answers_on_both_paths_are_healthy() -> None:
    assert kind(peer(N1, status=ServerStatus.PRIMARY), ALIVE) is VerdictKind.HEALTHY


def test_the_agents_word_counts_at_once() -> None:
    gone = peer(N1, status=ServerStatus.STOPPED)
    assert kind(gone, Probe(answered_ms=NOW_MS - 500)) is VerdictKind.DEAD


def test_a_server_that_was_not_started_yet_is_not_dead_at_once() -> None:
    starting = peer(N1, status=ServerStatus.STOPPED)
    assert kind(starting, Probe(), since_ms=NOW_MS - 100) is VerdictKind.UNKNOWN
    assert kind(starting, Probe(), since_ms=LONG_AGO_MS) is VerdictKind.DEAD


def test_another_directory_under_the_leaders_name_is_not_the_leader() -> None:
    assert kind(peer(replace(N1, incarnation="ffffffff")), ALIVE) is VerdictKind.DEAD


def test_refused_on_both_paths_means_that_the_host_is_there_and_the_processes_are_not() -> None:
    refused = Peer(answered_ms=NOW_MS - 400, refused_ms=NOW_MS)
    assert kind(refused, Probe(answered_ms=NOW_MS - 400, refused_ms=NOW_MS)) is VerdictKind.DEAD


def test_an_agent_that_died_alone_is_no_reason() -> None:
    assert kind(Peer(answered_ms=LONG_AGO_MS, refused_ms=NOW_MS), ALIVE) is VerdictKind.HEALTHY


@pytest.mark.parametrize(("silent_ms", "expected"), [(1499, VerdictKind.HEALTHY), (1500, VerdictKind.UNREACHABLE)])
def test_silence_on_every_path(silent_ms: int, expected: VerdictKind) -> None:
    last_ms = NOW_MS - silent_ms
    assert kind(Peer(answered_ms=last_ms), Probe(answered_ms=last_ms)) is expected


def test_an_agent_that_answers_beside_a_server_that_lets_nobody_in() -> None:
    agent = peer(N1, status=ServerStatus.PRIMARY)
    assert kind(agent, Probe(answered_ms=NOW_MS - TIMEOUTS.hung_ms)) is VerdictKind.HUNG
    assert kind(agent, Probe(answered_ms=NOW_MS - TIMEOUTS.hung_ms + 1)) is VerdictKind.HEALTHY


def test_a_leadership_that_has_just_begun_is_given_its_time() -> None:
    assert kind(Peer(), Probe(), since_ms=NOW_MS - 100) is VerdictKind.UNKNOWN


def test_the_own_agent_knows() -> None:
    assert judge_own(N1, 1, ServerStatus.STOPPED, True).kind is VerdictKind.DEAD
    assert judge_own(N1, 1, ServerStatus.STOPPED, False).kind is VerdictKind.UNKNOWN
    assert judge_own(N1, 1, ServerStatus.PRIMARY, True).kind is VerdictKind.HEALTHY
    assert judge_own(N1, 1, ServerStatus.ABSENT, False).kind is VerdictKind.DEAD


def test_a_candidate_that_recovers_is_not_hung() -> None:
    starting = peer(N1, status=ServerStatus.STARTING)
    late = Probe(answered_ms=LONG_AGO_MS)
    assert judge(N1, 2, NOW_MS, LONG_AGO_MS, starting, late, TIMEOUTS, True).kind is VerdictKind.HEALTHY
    assert judge(N1, 2, NOW_MS, LONG_AGO_MS, starting, late, TIMEOUTS, False).kind is VerdictKind.HUNG
