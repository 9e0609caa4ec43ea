"""A log that does not fit is given up for a candidate if enough recruits stay without it, and else for nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import actions as a
from holdfast.core.giving_up import are_enough_without, gives_up
from holdfast.core.leadership import Duty, decide, duty_of, situation_of
from holdfast.core.observation import Observation, Peer
from holdfast.core.quorum import recruits_suffice
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.policy import Durability, Policy
from holdfast.model.register import Configuration, Member, Phase, Quorum, Recruit
from holdfast.model.server import Replica, ServerStatus, ServerView
from tests.core.builders import (
    N1,
    N2,
    N3,
    NOW_MS,
    TIMEOUTS,
    at,
    observation,
    peer,
    recruit,
    register,
    standby,
    streaming,
)

THIRD = register(3, Phase.PROMOTING, N1)
MADE_ANEW = Member("n1", "ffffffff")


def leading(*replicas: Replica, leader: Member = N1, **changes: object) -> dict[str, Peer]:
    """N1 (or another), promoted in epoch 3 from where its log of epoch 1 ended."""
    told: dict[str, object] = {
        "status": ServerStatus.PRIMARY,
        "position": at(3, 200),
        "history": (TimelineSwitch(1, Lsn(120)),),
        "replicas": replicas,
    }
    return {leader.node: peer(leader, **(told | changes))}  # type: ignore[arg-type]


def waiting(**changes: object) -> Observation:
    """N2, a candidate of epoch 2 that never served; N1, the committed leader, cannot commit its barrier in epoch 3."""
    plain = observation(
        register=THIRD, promised=3, recruits=(recruit(N1, 3, 1, 120), recruit(N2, 3, 2, 150)), peers=leading(),
        server=ServerView(ServerStatus.STOPPED), own_end=at(2, 150), lead_address="n1:1",
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def duty(o: Observation) -> Duty:
    return duty_of(o, situation_of(o))


def test_two_logs_that_have_diverged_do_not_wait_for_each_other() -> None:
    decision = decide(waiting())
    assert (decision.rule.id, decision.actions) == ("rejoin.rewind", (a.Rewind(N1),))


def test_those_who_fit_have_their_time_first() -> None:
    since_ms = NOW_MS - TIMEOUTS.give_up_grace_ms
    assert duty(waiting(progress_ms=since_ms)) is Duty.REJOIN
    assert duty(waiting(progress_ms=since_ms + 1)) is Duty.LEAVE


def test_a_log_is_kept_from_any_other_candidate() -> None:
    """N3 has what was acknowledged, but so may nobody else: with this log gone, the next epoch could miss a recruit."""
    other = register(3, Phase.PROMOTING, N3)
    joined = (recruit(N3, 3, 1, 120), recruit(N2, 3, 2, 150))
    assert duty(waiting(register=other, peers=leading(leader=N3), recruits=joined)) is Duty.LEAVE
    after = replace(THIRD, candidate=MADE_ANEW)
    anew = leading(leader=MADE_ANEW)
    assert duty(waiting(register=after, peers=anew, recruits=(recruit(MADE_ANEW, 3, 1, 120),))) is Duty.LEAVE


N4 = Member("n4", "00000004")
OF_THREE = Configuration(N1, 1, Quorum(frozenset({N2, N3, N4}), 2))
"""Two of three confirm: two of them are enough of recruits."""
THREE_LOGS = (recruit(N2, 3, 2, 150), recruit(N3, 3, 1, 120), recruit(N4, 3, 2, 130))
"""N3 is the candidate; N2 and N4 each led an epoch in vain."""


def diverged(own: Member, *joined: Recruit) -> Observation:
    """N1 is gone for good."""
    third = replace(register(3, Phase.PROMOTING, N3), committed=OF_THREE, voters=("n1", "n2", "n3", "n4"))
    others = {r.member.node: peer(r.member) for r in joined if r.member not in (own, N3)}
    o = waiting(register=third, peers=others | leading(leader=N3), recruits=joined, node=own.node, member=own)
    end = next((r.position for r in joined if r.member == own), at(2, 150))
    return replace(o, own_end=end, lead_address="n3:1")


def test_three_logs_that_have_diverged_do_not_wait_for_each_other() -> None:
    decision = decide(diverged(N2, *THREE_LOGS))
    assert (decision.rule.id, decision.actions) == ("rejoin.rewind", (a.Rewind(N3),))


def test_the_last_of_them_keeps_its_log() -> None:
    """Without N2 and N4 nobody could be recruited again."""
    assert duty(diverged(N4, *THREE_LOGS)) is Duty.LEAVE


def test_it_is_given_up_only_if_the_others_have_joined() -> None:
    second, third, fourth = THREE_LOGS
    assert duty(diverged(N2, second, third)) is Duty.LEAVE
    assert duty(diverged(N2, second, third, replace(fourth, epoch=2))) is Duty.LEAVE
    other_directory = replace(fourth, member=Member("n4", "ffffffff"))
    assert duty(diverged(N2, second, third, other_directory)) is Duty.LEAVE


def test_whom_it_counts_on_must_still_have_what_it_joined_with() -> None:
    o = diverged(N2, *THREE_LOGS)
    without = {name: known for name, known in o.peers.items() if name != "n4"}
    assert duty(replace(o, peers=without)) is Duty.LEAVE
    assert duty(replace(o, peers=without | {"n4": peer(Member("n4", "ffffffff"))})) is Duty.LEAVE
    assert duty(replace(o, peers=without | {"n4": replace(peer(N4), answered_ms=NOW_MS - 60_000)})) is Duty.LEAVE


def test_it_is_kept_for_any_candidate_if_one_who_fits_may_come() -> None:
    second, third, _ = THREE_LOGS
    assert duty(diverged(N2, second, third, recruit(N4, 3, 1, 110))) is Duty.LEAVE


@given(st.sets(st.sampled_from("abcdefg"), min_size=2), st.data())
def test_however_many_give_up_at_once_enough_stay(names: set[str], data: st.DataObject) -> None:
    members = frozenset(Member(name, "1") for name in names)
    k = data.draw(st.integers(1, len(members)))
    candidate = data.draw(st.sampled_from(sorted(members, key=str)))
    committed = Configuration(Member("gone", "1"), 1, Quorum(members, k))
    third = replace(register(3, Phase.PROMOTING, candidate), committed=committed)
    joined = data.draw(st.sets(st.sampled_from(sorted(members, key=str))))

    def would_give_up(own: Member) -> bool:
        seen = data.draw(st.sets(st.sampled_from(sorted(joined, key=str)))) if joined else set()
        recruits = tuple(recruit(m, 3, 1, 100) for m in seen)
        said = {m.node: peer(m) for m in seen}
        o = waiting(register=third, node=own.node, member=own, recruits=recruits, peers=said)
        return are_enough_without(o, third)

    givers = {member for member in members - {candidate} if would_give_up(member)}
    if givers:
        assert recruits_suffice(committed, (joined | {candidate}) - givers)


def test_nobody_leads_before_there_is_a_candidate() -> None:
    recruiting = register(3, Phase.RECRUITING)
    assert not gives_up(waiting(register=recruiting), recruiting)


@pytest.mark.parametrize(
    "peers",
    [
        {},
        {"n1": Peer(asked_ms=NOW_MS)},
        {"n1": replace(leading()["n1"], answered_ms=None)},
        {"n1": replace(leading()["n1"], answered_ms=NOW_MS - 60_000)},
        leading(leader=MADE_ANEW),
        leading(status=ServerStatus.STANDBY),
        leading(status=ServerStatus.STOPPED, position=None),
        leading(position=at(1, 120), history=()),
    ],
    ids=["unknown", "silent", "never asked", "long ago", "made anew", "not promoted", "stopped", "of an older epoch"],
)
def test_there_must_be_a_log_to_rewind_to(peers: dict[str, Peer]) -> None:
    assert duty(waiting(peers=peers)) is Duty.LEAVE


def test_a_log_is_kept_while_others_can_confirm() -> None:
    joined = (*waiting().recruits, recruit(N3, 3, 1, 120))
    confirmed = waiting(recruits=joined, peers=leading(streaming(N3, 210)))
    assert duty(confirmed) is Duty.LEAVE
    catching_up = leading(replace(streaming(N3, 110), state="catchup"))
    assert duty(waiting(recruits=joined, peers=catching_up)) is Duty.REJOIN
    stranger = leading(streaming(Member("n9", "00000009"), 210))
    assert duty(waiting(recruits=joined, peers=stranger)) is Duty.REJOIN


def test_who_may_commit_alone_waits_for_nobodys_log() -> None:
    assert duty(waiting(policy=Policy(durability=Durability.DEGRADING))) is Duty.LEAVE


def test_a_directory_that_only_fails_to_stream_is_not_given_up() -> None:
    fits = waiting(server=standby(1, 120), own_end=None, stuck=True)
    assert duty(fits) is Duty.LEAVE
    assert duty(replace(fits, stuck=False, condemned=True)) is Duty.LEAVE


def test_a_standby_of_the_lost_candidate_stops_before_it_is_rewound() -> None:
    followed = waiting(server=standby(2, 150), own_end=None)
    assert decide(followed).rule.id == "rejoin.stop"


def test_one_that_did_not_stream_and_is_stopped_starts_again_before_anybody_serves() -> None:
    """Nobody else may be there to confirm the barrier: waiting for it to be passed would be waiting for ever."""
    decision = decide(waiting(own_end=at(1, 120), stuck=True))
    assert (decision.rule.id, decision.actions) == ("follow.start", (a.Start(standby=True),))
