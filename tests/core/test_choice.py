"""Which recruit is promoted."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.choice import ChoiceReason, choose
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.register import Configuration, Quorum, Recruit
from tests.core.builders import BOTH, N1, N2, N3, recruit

COMMITTED = Configuration(N1, 1, BOTH)


def chosen(*recruits: Recruit, preferred: str | None = None, leader_may_lead: bool = False) -> object:
    choice = choose(COMMITTED, recruits, preferred, leader_may_lead)
    return None if choice is None else (choice.candidate, choice.reason)


def test_the_most_log_wins() -> None:
    assert chosen(recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 101)) == (N3, ChoiceReason.STANDBYS)


def test_a_newer_timeline_beats_a_longer_log() -> None:
    branched = replace(recruit(N2, 3, 2, 100), history=(TimelineSwitch(1, Lsn(90)),))
    assert chosen(branched, recruit(N3, 3, 1, 80)) == (N2, ChoiceReason.STANDBYS)
    assert chosen(branched, recruit(N3, 3, 1, 900), leader_may_lead=True) == (N2, ChoiceReason.STANDBYS)


def test_a_candidate_that_nobody_can_follow_waits_for_better() -> None:
    """Its barrier could never be passed; with the leader, whose log is the longest, the other fits."""
    branched = replace(recruit(N2, 3, 2, 100), history=(TimelineSwitch(1, Lsn(90)),))
    assert chosen(branched, recruit(N3, 3, 1, 900)) is None
    only_n2 = replace(COMMITTED, quorum=Quorum(frozenset({N2}), 1))
    with_tail = [recruit(N1, 2, 1, 500), recruit(N2, 2, 1, 100)]
    choice = choose(only_n2, with_tail, None, False)
    assert choice is not None
    assert (choice.candidate, choice.reason) == (N1, ChoiceReason.LEADER_ITSELF)
    third = choose(only_n2, [*with_tail, recruit(N3, 2, 1, 90)], None, False)
    assert third is not None
    assert third.candidate == N2


def test_preference_only_breaks_ties() -> None:
    assert chosen(recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100), preferred="n2") == (N2, ChoiceReason.STANDBYS)
    assert chosen(recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 101), preferred="n2") == (N3, ChoiceReason.STANDBYS)


def test_of_equal_logs_the_one_that_has_replayed_more_wins() -> None:
    ahead = replace(recruit(N2, 2, 1, 100), replayed_lsn=Lsn(90))
    assert chosen(ahead, replace(recruit(N3, 2, 1, 100), replayed_lsn=Lsn(50))) == (N2, ChoiceReason.STANDBYS)


def test_one_standby_of_two_is_not_enough() -> None:
    assert chosen(recruit(N2, 2, 1, 100)) is None


def test_one_standby_that_has_all_of_the_leaders_log_is_enough() -> None:
    assert chosen(recruit(N1, 2, 1, 100), recruit(N2, 2, 1, 100)) == (N2, ChoiceReason.EQUALS_LEADER)


def test_one_standby_behind_the_leader_waits_for_the_other() -> None:
    behind = (recruit(N1, 2, 1, 101), recruit(N2, 2, 1, 100))
    assert chosen(*behind) is None
    assert chosen(*behind, recruit(N3, 2, 1, 100)) == (N3, ChoiceReason.STANDBYS)


def test_the_lost_leader_leads_again_only_as_the_last_resort() -> None:
    alone = (recruit(N1, 2, 1, 101), recruit(N2, 2, 1, 100))
    assert chosen(*alone, leader_may_lead=True) == (N1, ChoiceReason.LEADER_ITSELF)
    both = (*alone, recruit(N3, 2, 1, 90))
    assert chosen(*both, leader_may_lead=True) == (N2, ChoiceReason.STANDBYS)


def test_when_commits_were_local_only_the_leader_or_its_equal_will_do() -> None:
    degraded = replace(COMMITTED, quorum=Quorum(BOTH.members, 0))
    standbys = [recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100)]
    assert choose(degraded, standbys, None, True) is None
    choice = choose(degraded, [*standbys, recruit(N1, 2, 1, 101)], None, False)
    assert choice is not None
    assert choice.candidate == N1


def test_a_directory_made_anew_is_no_recruit_of_the_old_quorum() -> None:
    stranger = replace(N3, incarnation="ffffffff")
    assert chosen(recruit(N2, 2, 1, 100), recruit(stranger, 2, 1, 100)) is None
