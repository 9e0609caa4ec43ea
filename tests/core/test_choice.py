"""Which recruit is promoted."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.choice import ChoiceReason, Wishes, choose
from holdfast.core.durability import Allowance
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.policy import Durability, NodeTags, Policy
from holdfast.model.register import Configuration, Quorum, Recruit
from tests.core.builders import BOTH, N1, N2, N3, recruit

COMMITTED = Configuration(N1, 1, BOTH)
LOCAL = replace(COMMITTED, quorum=Quorum(BOTH.members, 0))
ASYNC = Policy(durability=Durability.ASYNCHRONOUS, maximum_lag_bytes=50)


def picked(committed: Configuration, recruits: list[Recruit], wishes: Wishes) -> object:
    choice = choose(committed, recruits, wishes)
    return None if choice is None else (choice.candidate, choice.reason)


def chosen(*recruits: Recruit, preferred: str | None = None, leader_may_lead: bool = False) -> object:
    choice = choose(COMMITTED, recruits, Wishes(preferred, leader_may_lead))
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
    choice = choose(only_n2, with_tail, Wishes())
    assert choice is not None
    assert (choice.candidate, choice.reason) == (N1, ChoiceReason.LEADER_ITSELF)
    third = choose(only_n2, [*with_tail, recruit(N3, 2, 1, 90)], Wishes())
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
    standbys = [recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100)]
    assert choose(LOCAL, standbys, Wishes(leader_may_lead=True)) is None
    assert picked(LOCAL, [*standbys, recruit(N1, 2, 1, 101)], Wishes()) == (N1, ChoiceReason.LEADER_ITSELF)
    assert picked(LOCAL, [*standbys, recruit(N1, 2, 1, 100)], Wishes()) == (N3, ChoiceReason.EQUALS_LEADER)


def test_a_fenced_leader_may_be_replaced_by_who_lacks_no_more_than_the_policy_lets_go() -> None:
    fenced = Wishes(allowance=Allowance(1, Lsn(150), 50))
    assert picked(LOCAL, [recruit(N2, 2, 1, 100)], replace(fenced, policy=ASYNC)) == (N2, ChoiceReason.WITHIN_LAG)
    assert choose(LOCAL, [recruit(N2, 2, 1, 99)], replace(fenced, policy=ASYNC)) is None
    assert choose(COMMITTED, [recruit(N2, 2, 1, 100)], replace(fenced, policy=ASYNC)) is None


def test_a_leader_that_joined_goes_first_unless_it_could_not_serve() -> None:
    recruits = [recruit(N1, 4, 1, 150), recruit(N2, 4, 1, 100)]
    wishes = Wishes(policy=ASYNC)
    assert picked(LOCAL, recruits, wishes) == (N1, ChoiceReason.LEADER_ITSELF)
    assert picked(LOCAL, recruits, replace(wishes, leader_failed=True)) == (N2, ChoiceReason.WITHIN_LAG)


def test_a_node_that_is_not_to_be_promoted_is_not() -> None:
    policy = Policy(nodes={"n3": NodeTags(promotable=False)})
    both = [recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100)]
    assert picked(COMMITTED, both, Wishes(policy=policy)) == (N2, ChoiceReason.STANDBYS)
    ahead = [recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 101)]
    assert choose(COMMITTED, ahead, Wishes(policy=policy, leader_may_lead=True)) is None


def test_tags_decide_among_equals_only() -> None:
    priority = Policy(nodes={"n2": NodeTags(priority=5)})
    both = [recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100)]
    assert picked(COMMITTED, both, Wishes()) == (N3, ChoiceReason.STANDBYS)
    assert picked(COMMITTED, both, Wishes(policy=priority)) == (N2, ChoiceReason.STANDBYS)
    assert picked(COMMITTED, [recruit(N2, 2, 1, 99), both[1]], Wishes(policy=priority)) == (N3, ChoiceReason.STANDBYS)
    zones = Policy(nodes={"n1": NodeTags(zone="a"), "n2": NodeTags(zone="a"), "n3": NodeTags(zone="b")})
    assert picked(COMMITTED, both, Wishes(policy=zones)) == (N2, ChoiceReason.STANDBYS)


def test_alone_a_candidate_needs_no_follower_where_commits_may_be_local() -> None:
    only_n2 = replace(COMMITTED, quorum=Quorum(frozenset({N2}), 1))
    assert choose(only_n2, [recruit(N2, 2, 1, 100)], Wishes()) is None
    degrading = Wishes(policy=Policy(durability=Durability.DEGRADING))
    assert picked(only_n2, [recruit(N2, 2, 1, 100)], degrading) == (N2, ChoiceReason.STANDBYS)


def test_a_directory_made_anew_is_no_recruit_of_the_old_quorum() -> None:
    stranger = replace(N3, incarnation="ffffffff")
    assert chosen(recruit(N2, 2, 1, 100), recruit(stranger, 2, 1, 100)) is None
