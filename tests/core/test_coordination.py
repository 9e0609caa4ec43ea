"""What the voters do for the whole cluster."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from holdfast.core import actions as a
from holdfast.core.choice import ChoiceReason
from holdfast.core.coordination import COORDINATION, Signal, coordinate, phase_timeout_ms, prevote_passes, signal_of
from holdfast.core.observation import Observation, Peer
from holdfast.model.lease import LeaseRecord
from holdfast.model.lsn import Lsn
from holdfast.model.policy import Durability, Policy, Promotion
from holdfast.model.register import Phase, Quorum
from holdfast.model.report import VerdictKind
from holdfast.model.server import ServerStatus, ServerView
from tests.core.builders import N1, N2, N3, NOW_MS, TIMEOUTS, at, observation, peer, recruit, register, report, verdict

DEAD = verdict(VerdictKind.DEAD)


def rule_and_actions(o: Observation) -> tuple[str, tuple[a.Action, ...]]:
    coordination = coordinate(o)
    assert coordination is not None
    return coordination.rule.id, coordination.actions


def suspicious(*others: str) -> Observation:
    """N2 holds that N1 is dead, and so do the others named; all of them answer."""
    answers = {m.node: peer(m, verdict=DEAD if m.node in others else None) for m in (N1, N3)}
    return observation(verdict=DEAD, suspected_since_ms=NOW_MS, peers=answers)


def test_signals_that_a_phase_cannot_have_are_illegal() -> None:
    legal = set(COORDINATION)
    illegal = set(product(Phase, Signal)) - legal
    assert (Phase.SERVING, Signal.ENOUGH) in illegal
    assert (Phase.PROMOTING, Signal.ENOUGH) in illegal


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_gives_a_signal_that_its_row_knows(phase: Phase) -> None:
    candidate = N3 if phase is Phase.PROMOTING else None
    epoch = 1 if phase is Phase.SERVING else 2
    for progress_ms, kind, joined in product(
        (NOW_MS, NOW_MS - 10_000_000), VerdictKind, ((), (recruit(N2, 2, 1, 1), recruit(N3, 2, 1, 1)))
    ):
        o = observation(
            register=register(epoch, phase, candidate), progress_ms=progress_ms, recruits=joined,
            verdict=verdict(kind, candidate or N1, epoch),
        )  # fmt: skip
        assert o.register is not None
        assert (phase, signal_of(o, o.register)) in COORDINATION
        assert coordinate(o) is not None


def test_one_voter_alone_opens_nothing() -> None:
    assert rule_and_actions(suspicious())[0] == "epoch.quiet"


def test_a_majority_opens_an_epoch_that_could_be_recruited() -> None:
    rule, (opened,) = rule_and_actions(suspicious("n3"))
    assert rule == "epoch.suspect"
    assert isinstance(opened, a.OpenEpoch)


def test_nobody_asks_for_an_epoch_on_stale_answers() -> None:
    o = replace(suspicious("n3"), peers={"n3": peer(N3, answered_ms=NOW_MS - 500, verdict=DEAD)})
    assert rule_and_actions(o) == ("epoch.suspect", (a.AskPeers(),))


def test_who_does_not_hear_the_store_joins_no_epoch_and_is_waited_for_while_it_may_reconnect() -> None:
    """N3 watched the store through the host that was lost; N1 is gone."""
    deaf = {"n3": peer(N3, verdict=DEAD, store_connected=False), "n1": Peer(asked_ms=NOW_MS)}
    o = replace(suspicious("n3"), peers=deaf)
    assert rule_and_actions(o) == ("epoch.suspect", ())
    tick_ms = NOW_MS + TIMEOUTS.busy_tick_interval_ms
    assert rule_and_actions(replace(o, now_ms=tick_ms - 1)) == ("epoch.suspect", ())
    assert rule_and_actions(replace(o, now_ms=tick_ms)) == ("epoch.suspect", (a.AskPeers(),))
    back = {**deaf, "n3": peer(N3, answered_ms=tick_ms, verdict=DEAD)}
    assert isinstance(rule_and_actions(replace(o, peers=back, now_ms=tick_ms))[1][0], a.OpenEpoch)
    late_ms = NOW_MS + TIMEOUTS.store_silence_ms
    still = {**deaf, "n3": replace(deaf["n3"], answered_ms=late_ms)}
    assert isinstance(rule_and_actions(replace(o, peers=still, now_ms=late_ms))[1][0], a.Await)
    unfit = {**deaf, "n3": peer(N3, verdict=DEAD, store_connected=False, situation="rebuilding")}
    assert isinstance(rule_and_actions(replace(o, peers=unfit))[1][0], a.Await)
    empty = {
        **deaf,
        "n3": Peer(replace(report(N3, verdict=DEAD, store_connected=False), member=None), NOW_MS, asked_ms=NOW_MS),
    }
    assert isinstance(rule_and_actions(replace(o, peers=empty))[1][0], a.Await)


def test_the_own_agent_opens_at_once_without_a_majority() -> None:
    o = observation(
        N1, server=ServerView(ServerStatus.STOPPED), verdict=DEAD, suspected_since_ms=NOW_MS,
        peers={"n2": peer(N2), "n3": peer(N3)},
    )  # fmt: skip
    rule, (opened,) = rule_and_actions(o)
    assert (rule, type(opened)) == ("epoch.suspect", a.OpenEpoch)


def test_a_limping_cluster_is_not_turned_into_a_blocked_one() -> None:
    o = observation()
    assert not prevote_passes(o, register(), frozenset({N2}))
    assert prevote_passes(o, register(), frozenset({N2, N3}))
    assert prevote_passes(o, register(), frozenset({N1, N2}))
    assert not prevote_passes(o, register(), frozenset({N1}))
    alone = replace(o, policy=Policy(durability=Durability.DEGRADING))
    assert prevote_passes(alone, register(), frozenset({N1}))
    assert not prevote_passes(alone, register(), frozenset({N2}))
    busy = peer(N3, situation="rebuilding", verdict=DEAD)
    o = replace(suspicious("n3"), peers={"n3": busy, "n1": replace(peer(N1), answered_ms=None)})
    rule, (waits,) = rule_and_actions(o)
    assert rule == "epoch.suspect"
    assert isinstance(waits, a.Await)
    assert "nobody can take over safely" in waits.reason


def test_votes_for_another_epoch_or_from_strangers_do_not_count() -> None:
    old = peer(N3, verdict=verdict(VerdictKind.DEAD, N1, 0))
    assert rule_and_actions(replace(suspicious(), peers={"n3": old}))[0] == "epoch.quiet"
    stranger = {"n3": peer(N3), "n9": peer(replace(N3, node="n9"), verdict=DEAD)}
    assert rule_and_actions(replace(suspicious(), peers=stranger))[0] == "epoch.quiet"


def test_after_a_failover_suspicion_has_to_cool_down() -> None:
    o = replace(suspicious("n3"), last_failover_ms=NOW_MS - 100)
    assert rule_and_actions(o)[0] == "epoch.quiet"


def test_a_leader_that_dies_while_it_hands_over_is_suspected_like_any_other() -> None:
    """That it stops on purpose is for the verdicts to know: they hold nothing against it."""
    o = replace(suspicious("n3"), register=replace(register(), handover="n2"), progress_ms=NOW_MS - 100)
    assert rule_and_actions(o)[0] == "epoch.suspect"


def recruiting(*joined: int, since_ms: int = 0) -> Observation:
    members = {1: N1, 2: N2, 3: N3}
    return observation(
        register=register(2, Phase.RECRUITING), promised=2, phase_since_ms=NOW_MS - since_ms, progress_ms=NOW_MS,
        recruits=tuple(recruit(members[i], 2, 1, 100) for i in joined), enough_since_ms=NOW_MS,
        peers={"n1": peer(N1), "n3": peer(N3)},
    )  # fmt: skip


def test_the_choice_waits_a_moment_for_a_member_that_answers() -> None:
    o = recruiting(1, 2)
    assert rule_and_actions(o) == ("epoch.choose", ())
    later = replace(o, now_ms=NOW_MS + 200)
    rule, (chosen,) = rule_and_actions(later)
    assert (rule, chosen) == ("epoch.choose", a.ChooseCandidate(N2, ChoiceReason.EQUALS_LEADER))


def test_a_switchover_whose_target_is_safe_waits_for_nobody_once_the_old_leader_joined() -> None:
    handing_over = replace(register(2, Phase.RECRUITING), handover="n2")
    rule, (chosen,) = rule_and_actions(replace(recruiting(1, 2), register=handing_over))
    assert (rule, chosen) == ("epoch.choose", a.ChooseCandidate(N2, ChoiceReason.EQUALS_LEADER))
    to_another = replace(handing_over, handover="n3")
    assert rule_and_actions(replace(recruiting(1, 2), register=to_another)) == ("epoch.choose", ())
    former = replace(recruit(N1, 2, 1, 100), epoch=1)
    without_leader = replace(recruiting(2), register=handing_over)
    for recruits in (without_leader.recruits, (former, *without_leader.recruits)):
        assert rule_and_actions(replace(without_leader, recruits=recruits))[1] == ()


def test_the_choice_is_made_at_once_when_everybody_joined() -> None:
    rule, actions = rule_and_actions(recruiting(2, 3))
    assert rule == "epoch.choose"
    assert isinstance(actions[0], a.ChooseCandidate)


def test_a_phase_that_stands_still_is_replaced_later_each_time_and_not_by_all_at_once() -> None:
    o = replace(recruiting(2), progress_ms=NOW_MS - 60_000, suspected_since_ms=NOW_MS)
    assert rule_and_actions(o)[0] == "epoch.replace"
    second = register(2, Phase.RECRUITING)
    fifth = register(5, Phase.RECRUITING)
    assert phase_timeout_ms(o, fifth) > phase_timeout_ms(o, second)
    ranks = {phase_timeout_ms(replace(o, node=n), second) for n in ("n1", "n2", "n3")}
    assert len(ranks) == 3


def test_a_new_cluster_has_nobody_else_to_promote() -> None:
    new = replace(register(1, Phase.PROMOTING, N1), committed=replace(register().committed, epoch=0))
    o = observation(register=new, progress_ms=NOW_MS - 10_000_000)
    assert rule_and_actions(o)[0] == "epoch.quiet"


def test_who_is_no_voter_coordinates_nothing() -> None:
    assert coordinate(observation(node="n9")) is None


def test_a_switchover_that_nobody_goes_on_with_expires() -> None:
    waiting = replace(register(), handover="n2")
    o = observation(register=waiting, verdict=verdict(VerdictKind.HEALTHY), progress_ms=NOW_MS - 6000)
    assert rule_and_actions(o)[0] == "epoch.quiet"
    assert rule_and_actions(replace(o, progress_ms=NOW_MS - 60_000)) == ("handover.expire", (a.CancelHandOver(),))


def test_a_failover_that_people_approve_waits_for_them() -> None:
    o = replace(suspicious("n3"), policy=Policy(promotion=Promotion.APPROVED))
    rule, (waits,) = rule_and_actions(o)
    assert rule == "epoch.suspect"
    assert isinstance(waits, a.Await)
    assert "holdfast approve" in waits.reason
    assert isinstance(rule_and_actions(replace(o, approved_epoch=0))[1][0], a.Await)
    assert isinstance(rule_and_actions(replace(o, approved_epoch=1))[1][0], a.OpenEpoch)


def test_paused_voters_do_nothing() -> None:
    assert coordinate(replace(suspicious("n3"), policy=Policy(paused=True))) is None


LOCAL = register(2, Phase.RECRUITING).requorumed(Quorum(frozenset({N2, N3}), 0))
ASYNC = Policy(durability=Durability.ASYNCHRONOUS, maximum_lag_bytes=50)
RENEWED = LeaseRecord(N1, 1, Lsn(150))


def local(lease: LeaseRecord | None, renewed_ms: int, **changes: object) -> Observation:
    """N2 has joined the epoch that replaces N1, whose commits were local and whose log ended at 150."""
    o = replace(recruiting(2), register=LOCAL, policy=ASYNC, lease=lease, lease_renewed_ms=renewed_ms)
    return replace(o, **changes)  # type: ignore[arg-type]


def test_the_lost_leaders_lease_is_revoked_then_waited_for() -> None:
    over_ms = NOW_MS - TIMEOUTS.lease_ms * 102 // 100
    assert rule_and_actions(local(RENEWED, over_ms)) == ("lease.revoke", (a.RevokeLease(),))
    assert rule_and_actions(local(None, over_ms)) == ("lease.revoke", (a.RevokeLease(),))
    revoked = RENEWED.withdrawn(2, 7)
    assert rule_and_actions(local(revoked, over_ms + 1))[0] == "epoch.quiet"
    rule, (chosen,) = rule_and_actions(local(revoked, over_ms, now_ms=NOW_MS + 200))
    assert (rule, chosen) == ("epoch.choose", a.ChooseCandidate(N2, ChoiceReason.WITHIN_LAG))


def test_too_much_to_lose_is_for_people_to_decide() -> None:
    over_ms = NOW_MS - 60_000
    unknown = LeaseRecord(N1, 0, None).withdrawn(2, 0)
    far = RENEWED.withdrawn(2, 7)
    assert rule_and_actions(local(unknown, over_ms))[0] == "epoch.quiet"
    assert rule_and_actions(local(far, over_ms, policy=Policy(maximum_lag_bytes=49)))[0] == "epoch.quiet"


def test_a_leader_that_joins_is_fenced_without_its_lease() -> None:
    o = replace(recruiting(1, 2), register=LOCAL, policy=ASYNC, lease=RENEWED, now_ms=NOW_MS + 200)
    assert rule_and_actions(o)[0] == "epoch.choose"


def test_an_epoch_is_opened_for_local_commits_only_if_somebody_is_near_enough() -> None:
    serving = replace(LOCAL, phase=Phase.SERVING, epoch=1)
    o = replace(suspicious("n3"), register=serving, policy=ASYNC, lease=RENEWED)
    o = replace(o, peers={**o.peers, "n1": Peer(asked_ms=NOW_MS)})
    assert isinstance(rule_and_actions(o)[1][0], a.OpenEpoch)
    far = replace(o, lease=replace(RENEWED, lsn=Lsn(151)))
    assert isinstance(rule_and_actions(far)[1][0], a.Await)


def test_one_outside_of_the_quorum_that_followed_the_leader_can_follow_the_next() -> None:
    """The quorum was narrowed to N2, N1 is lost, and N3 is back: it was never in danger of having too much."""
    narrowed = register().requorumed(Quorum(frozenset({N2}), 1))
    gone = {"n1": Peer(asked_ms=NOW_MS), "n3": peer(N3, verdict=DEAD, situation="stopped")}
    o = replace(suspicious("n3"), register=narrowed, peers=gone)
    assert isinstance(rule_and_actions(o)[1][0], a.OpenEpoch)
    elsewhere = {**gone, "n3": peer(N3, verdict=DEAD, situation="stopped", position=at(3, 100))}
    assert isinstance(rule_and_actions(replace(o, peers=elsewhere))[1][0], a.Await)
    follows_candidate = replace(narrowed, epoch=3, phase=Phase.PROMOTING, candidate=N1)
    rule, (opened,) = rule_and_actions(replace(o, peers=elsewhere, register=follows_candidate, progress_ms=0))
    assert (rule, type(opened)) == ("epoch.replace", a.OpenEpoch)
    later = replace(o, peers=elsewhere, now_ms=NOW_MS + 100, verdict=replace(DEAD, evidence="no answer for 1600 ms"))
    assert rule_and_actions(later) == rule_and_actions(replace(o, peers=elsewhere))
