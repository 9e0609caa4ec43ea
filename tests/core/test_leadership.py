"""The leadership table: every pair of it, and the situations and duties that lead to the pairs."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from holdfast.core import actions as a
from holdfast.core.explain import rows
from holdfast.core.leadership import TABLE, Duty, Situation, decide, rule_for
from holdfast.core.observation import Observation, RegisterTrouble
from holdfast.core.rules import RULES, expected_quorum
from holdfast.model.errors import ProtocolViolation
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.policy import Policy
from holdfast.model.register import Member, Phase, Quorum
from holdfast.model.server import ABSENT_SERVER, ServerStatus, ServerView
from tests.core.builders import (
    BARRIER,
    BOTH,
    N1,
    N2,
    N3,
    NOW_MS,
    TIMEOUTS,
    at,
    new_register,
    observation,
    peer,
    primary,
    recruit,
    register,
    standby,
    streaming,
)

STOPPED = ServerView(ServerStatus.STOPPED)
LEADER_N2 = replace(register(), committed=replace(register().committed, leader=N2))

REGISTERS = {
    Duty.CREATE: None,
    Duty.AWAIT: None,
    Duty.ALARM: None,
    Duty.JOIN: register(2, Phase.RECRUITING),
    Duty.HOLD: register(2, Phase.RECRUITING),
    Duty.PROMOTE: register(2, Phase.PROMOTING, N2),
    Duty.SUPPORT: register(2, Phase.PROMOTING, N3),
    Duty.LEAD: LEADER_N2,
    Duty.LAPSED: LEADER_N2.requorumed(Quorum(BOTH.members, 0)),
    Duty.PLEDGED: register(2, Phase.RECRUITING),
    Duty.PAUSED: register(),
    Duty.YIELD: replace(LEADER_N2, handover="n3"),
    **dict.fromkeys((Duty.FOLLOW, Duty.EXAMINE, Duty.LEAVE, Duty.REJOIN), register()),
}


@pytest.mark.parametrize(("situation", "duty"), list(product(Situation, Duty)))
def test_every_pair_asks_for_actions_or_is_refused(situation: Situation, duty: Duty) -> None:
    if (situation, duty) not in TABLE:
        with pytest.raises(ProtocolViolation, match=f"{situation.value} and asked to {duty.value}"):
            rule_for(situation, duty)
        return
    o = observation(
        register=REGISTERS[duty], own_end=at(1, 100), marker=Lsn(100), stopped_ms=NOW_MS - 60_000,
        silent_since_ms=NOW_MS - 60_000, recruits=(recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100)),
        server=primary(1, 100, BARRIER, (streaming(N3, 100),)),
    )  # fmt: skip
    actions = rule_for(situation, duty).act(o)
    assert all(isinstance(action, get_args(a.Action)) for action in actions)
    # A promise comes before anything that it is about, and nobody acknowledges or touches data under an alarm.
    # The promise comes first: only what ends the own server may come before it, for that must not wait for a disk.
    others = [action for action in actions if not isinstance(action, (a.Stop, a.Kill))]
    assert not any(isinstance(action, a.PersistPromise) for action in others[1:])
    moving = (a.CreateRegister, a.OpenEpoch, a.ChooseCandidate, a.CommitConfiguration)
    if rule_for(situation, duty).moves_to is None:
        assert not any(isinstance(action, moving) for action in actions)
    if duty is Duty.ALARM:
        assert all(isinstance(action, (a.Alarm, a.ReadEndOfLog)) for action in actions)
    if situation is not Situation.COVERED:
        assert not any(isinstance(action, (a.TellPostgres, a.CommitConfiguration)) for action in actions)
    if situation not in (Situation.STOPPED, Situation.ABSENT):
        assert not any(isinstance(action, (a.Rewind, a.Clone, a.Initialize)) for action in actions)


def test_the_table_is_the_one_that_was_reviewed() -> None:
    """A change of the table shows as a change of this file; rewrite it with HOLDFAST_REWRITE=1 and explain the diff."""
    path = Path(__file__).with_name("leadership_table.txt")
    text = "".join(f"{row.table:8}{row.state:12}{row.input:10}{row.rule}\n" for row in rows())
    if os.environ.get("HOLDFAST_REWRITE") == "1":
        path.write_text(text)
    assert path.read_text() == text


def test_every_rule_is_used() -> None:
    assert {rule.id for rule in TABLE.values()} == set(RULES)
    for duty in Duty:
        assert any((situation, duty) in TABLE for situation in Situation)


def test_a_node_that_acknowledges_is_never_merely_asked_to_wait_for_another_epoch() -> None:
    for duty in (Duty.HOLD, Duty.PROMOTE):
        assert (Situation.OPEN, duty) not in TABLE
    for duty in (Duty.JOIN, Duty.SUPPORT, Duty.FOLLOW, Duty.EXAMINE, Duty.LEAVE, Duty.REJOIN):
        assert TABLE[Situation.OPEN, duty].id in ("recruit.fence", "follow.fence")


def acts(o: Observation) -> tuple[a.Action, ...]:
    return decide(o).actions


def test_a_recruit_promises_then_detaches_then_reports() -> None:
    o = observation(register=register(2, Phase.RECRUITING))
    assert acts(o) == (a.PersistPromise(2), a.Detach(), a.ReportRecruit(2))


def test_the_old_leader_joins_by_stopping() -> None:
    o = observation(N1, server=primary(1, 100), register=register(2, Phase.RECRUITING), lead_address=None)
    assert acts(o) == (a.Stop(immediate=True), a.PersistPromise(2))


def test_a_candidate_stays_closed_until_its_record_is_on_the_quorum() -> None:
    promoting = register(2, Phase.PROMOTING, N2)
    joined = (recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100))
    o = observation(register=promoting, promised=2, recruits=joined, lead_address=None, server=standby(1, 100))
    assert acts(o) == (a.Promote(2),)
    o = replace(o, server=primary(2, 120, BARRIER))
    assert acts(o) == (a.WriteMarker(2), a.AskPeers())
    o = replace(o, marker=Lsn(150), server=primary(2, 160, BARRIER, (streaming(N3, 149),)))
    assert acts(o) == ()
    o = replace(o, server=primary(2, 160, BARRIER, (streaming(N3, 150),)))
    (commit,) = acts(o)
    assert commit == a.CommitConfiguration(replace(BOTH, members=frozenset({N3})))


def test_a_stranger_cannot_carry_the_barrier() -> None:
    stranger = Member("n3", "ffffffff")
    o = observation(
        register=register(2, Phase.PROMOTING, N2), promised=2, lead_address=None, marker=Lsn(150),
        recruits=(recruit(N2, 2, 1, 100), recruit(N3, 2, 1, 100)),
        server=primary(2, 160, BARRIER, (replace(streaming(stranger, 200), state="catchup"),)),
    )  # fmt: skip
    assert decide(o).rule.id == "barrier.wait"


def test_who_has_log_beyond_the_candidates_is_not_counted_on() -> None:
    o = observation(
        register=register(3, Phase.PROMOTING, N2), promised=3, lead_address=None, marker=Lsn(150),
        recruits=(recruit(N2, 3, 2, 100), recruit(N3, 3, 1, 900)),
        server=primary(3, 160, BARRIER),
    )  # fmt: skip
    assert decide(o).rule.id == "barrier.wait"
    assert acts(replace(o, marker=Lsn(1))) == ()


def test_a_candidate_that_was_promoted_before_it_stopped_starts_as_a_primary() -> None:
    promoting = register(2, Phase.PROMOTING, N2)
    o = observation(register=promoting, promised=2, server=STOPPED, own_end=at(2, 100), lead_address=None)
    assert acts(o) == (a.Start(standby=False),)
    assert acts(replace(o, own_end=at(1, 100))) == (a.Start(standby=True),)


def test_a_standby_that_joined_no_epoch_and_goes_beyond_the_fork_confirms_no_barrier() -> None:
    """PostgreSQL lets it in while the fork lies within a segment, and takes its word for what it does not have."""
    promoting = register(2, Phase.PROMOTING, N2)
    log = primary(2, 520, BARRIER, (streaming(N3, 600),))
    o = observation(N2, register=promoting, promised=2, lead_address=None, server=log, marker=Lsn(510))
    beyond = replace(o, peers={"n3": peer(N3, position=at(1, 600), promised=2)})
    assert decide(beyond).rule.id == "barrier.wait"
    assert expected_quorum(beyond) is None
    fits = replace(o, peers={"n3": peer(N3, position=at(2, 600), promised=2)})
    assert expected_quorum(fits) == Quorum(frozenset({N3}), 1)
    assert decide(fits).rule.id == "barrier.commit"


def test_a_new_cluster_serves_once_a_standby_confirms() -> None:
    o = observation(N1, register=new_register(), promised=1, lead_address=None, server=primary(1, 100, BARRIER))
    o = replace(o, marker=Lsn(90))
    assert acts(o) == ()
    o = replace(o, server=primary(1, 100, BARRIER, (streaming(N2, 95),)), peers={"n2": peer(N2, position=None)})
    assert acts(replace(o, now_ms=o.now_ms + TIMEOUTS.busy_tick_interval_ms)) == (a.AskPeers(),)
    o = replace(o, peers={"n2": peer(N2, position=at(1, 95))})
    (commit,) = acts(o)
    assert isinstance(commit, a.CommitConfiguration)
    assert commit.quorum.members == {N2}


def test_a_lost_leader_restarts_only_after_the_others_had_their_time() -> None:
    o = observation(N1, server=STOPPED, own_end=at(1, 100), stopped_ms=NOW_MS - 10, seen_alive=True)
    assert acts(o) == ()
    assert acts(replace(o, stopped_ms=NOW_MS - 5000)) == (a.Start(standby=False),)
    assert acts(replace(o, seen_alive=False)) == (a.Start(standby=False),)


def test_a_restarted_leader_opens_when_its_marker_is_on_the_quorum() -> None:
    o = observation(N1, server=primary(1, 100, BARRIER))
    assert acts(o) == (a.WriteMarker(1),)
    o = replace(o, marker=Lsn(100), server=primary(1, 100, BARRIER, (streaming(N2, 99),)))
    assert acts(o) == ()
    o = replace(o, server=primary(1, 100, BARRIER, (streaming(N2, 100),)))
    assert acts(o) == (a.TellPostgres(BOTH),)


def served_by_n2() -> Observation:
    """The cluster after N2 took over in epoch 2; the fork is at 1/100; N1 has the directory that led before."""
    after = register(2, Phase.PROMOTING, N2).served_by(N2, replace(BOTH, members=frozenset({N3})))
    leader = peer(N2, status=ServerStatus.PRIMARY, position=at(2, 500), history=(TimelineSwitch(1, Lsn(100)),))
    return observation(N1, register=after, promised=2, server=STOPPED, peers={"n2": leader}, lead_address="n2:1")


def test_log_up_to_the_fork_follows_and_log_beyond_it_is_rewound() -> None:
    assert acts(served_by_n2()) == (a.ReadEndOfLog(),)
    assert acts(replace(served_by_n2(), own_end=at(1, 100))) == (a.Start(standby=True),)
    assert acts(replace(served_by_n2(), own_end=at(1, 101))) == (a.Rewind(N2),)
    assert acts(replace(served_by_n2(), own_end=at(1, 100), condemned=True)) == (a.Clone(N2),)


def test_a_directory_that_the_quorum_names_is_not_touched() -> None:
    o = served_by_n2()
    assert o.register is not None
    counted = o.register.requorumed(replace(BOTH, members=frozenset({N1, N3})))
    assert decide(replace(o, register=counted, own_end=at(1, 101))).rule.id == "leave.wait"


def test_an_old_primary_that_wakes_up_is_fenced() -> None:
    o = replace(served_by_n2(), server=primary(1, 900), promised=1)
    assert acts(o) == (a.Stop(immediate=True), a.PersistPromise(2))


def test_a_register_that_must_not_be_obeyed_touches_nothing() -> None:
    for trouble in RegisterTrouble:
        for server in (ABSENT_SERVER, STOPPED, standby(1, 100), primary(1, 100), primary(1, 100, BARRIER)):
            read = (a.ReadEndOfLog(),) if server is STOPPED else ()  # whoever recovers the register has to know
            assert acts(observation(trouble=trouble, server=server)) == (a.Alarm(trouble.explained), *read)
            assert acts(observation(trouble=trouble, server=server, own_end=at(1, 5))) == (a.Alarm(trouble.explained),)
        assert "store.endpoints" in trouble.explained or "`holdfast recover`" in trouble.explained


def test_a_leader_whose_directory_was_lost_waits_for_another_leader() -> None:
    o = observation(None, node="n1", server=ABSENT_SERVER, promised=1)
    assert decide(o).rule.id == "wait.evidence"


def test_a_hand_over_opens_the_epoch_only_when_the_target_has_everything() -> None:
    yielding = replace(register(), handover="n2")
    o = observation(N1, register=yielding, server=STOPPED, own_end=at(1, 100), stopped_ms=NOW_MS - 10)
    assert acts(replace(o, peers={"n2": peer(N2, position=at(1, 99))})) == (a.AskPeers(),)
    assert acts(replace(o, peers={"n2": peer(N2, position=at(1, 100))})) == (a.OpenEpoch("switchover to n2"),)
    late = replace(o, peers={"n2": peer(N2, position=at(1, 99))}, stopped_ms=NOW_MS - 60_000)
    assert acts(late) == (a.Start(standby=False),)
    again = replace(o, server=primary(1, 120, BARRIER), stopped_ms=None)
    assert acts(again) == (a.CancelHandOver(),)


def handed_over(joined: tuple[Member, ...], promoting_ms: int, quorum: Quorum = BOTH) -> Observation:
    """N1, stopped, has handed over to N2, which is being promoted."""
    promoting = register(2, Phase.PROMOTING, N2)
    committed = replace(promoting.committed, quorum=quorum)
    return observation(
        N1, register=replace(promoting, handover="n2", committed=committed), server=STOPPED, own_end=at(1, 100),
        promised=2, phase_since_ms=NOW_MS - promoting_ms, recruits=tuple(recruit(m, 2, 1, 100) for m in joined),
    )  # fmt: skip


def test_a_leader_that_handed_over_starts_when_it_takes_nothing_from_the_barrier() -> None:
    start = (a.Start(standby=True),)
    restart_ms, recruit_ms = TIMEOUTS.leader_restart_grace_ms, TIMEOUTS.recruit_grace_ms
    for joined, grace_ms in (((N1, N2, N3), restart_ms), ((N1, N2), recruit_ms)):
        assert acts(handed_over(joined, grace_ms - 1)) == ()
        assert acts(handed_over(joined, grace_ms)) == start
    assert acts(handed_over((N1, N2), 0, Quorum(frozenset({N2}), 1))) == start  # nobody else could confirm
    lost = handed_over((N1, N2, N3), 0)
    assert acts(replace(lost, register=register(2, Phase.PROMOTING, N2))) == start  # a failover waits for everybody


LOCAL = LEADER_N2.requorumed(Quorum(BOTH.members, 0))


def local_leader(**changes: object) -> Observation:
    o = observation(N2, register=LOCAL, server=primary(1, 100, ""), lead_address=None)
    return replace(o, **changes)  # type: ignore[arg-type]


def test_a_leader_that_acknowledges_alone_is_killed_without_the_lease() -> None:
    assert acts(local_leader()) == (a.Kill(),)
    assert acts(local_leader(leased_until_ms=NOW_MS)) == (a.Kill(),)
    assert acts(local_leader(leased_until_ms=NOW_MS + 1)) == ()
    assert acts(local_leader(server=ServerView(ServerStatus.UNRESPONSIVE))) == (a.Kill(),)
    paused = Policy(paused=True)
    assert acts(local_leader(policy=paused)) == (a.Kill(),)


def test_a_closed_leader_opens_to_local_commits_only_with_the_lease() -> None:
    closed = local_leader(server=primary(1, 100, BARRIER), marker=Lsn(100))
    assert decide(closed).rule.id == "lease.await"
    opened = decide(replace(closed, leased_until_ms=NOW_MS + 1))
    assert opened.actions == (a.TellPostgres(Quorum(BOTH.members, 0)),)


def test_a_word_given_to_the_leader_binds_until_its_time() -> None:
    o = observation(register=register(2, Phase.RECRUITING), pledged_until_ms=NOW_MS + 1)
    assert decide(o).rule.id == "pledge.wait"
    assert decide(replace(o, now_ms=NOW_MS + 1)).rule.id == "recruit.detach"
    assert decide(replace(o, promised=2)).rule.id == "recruit.detach"


def test_paused_means_hands_off() -> None:
    paused = Policy(paused=True)
    for o in (
        observation(policy=paused, register=register(2, Phase.RECRUITING)),
        observation(policy=paused, server=ServerView(ServerStatus.STOPPED)),
        observation(N1, policy=paused, server=primary(1, 100), lead_address=None),
    ):
        assert decide(o).rule.id == "pause.look"
        assert acts(o) == ()


def test_what_was_promoted_for_a_replaced_epoch_begins_anew() -> None:
    """`pg_promote` cannot be taken back: a promotion of epoch 2 may end when epoch 3 has the same candidate."""
    late = observation(N2, server=primary(2, 100, BARRIER), register=register(3, Phase.PROMOTING, N2), promised=3)
    assert acts(late) == (a.Stop(immediate=True),)
    assert acts(replace(late, server=primary(3, 100, BARRIER))) == (a.WriteMarker(3), a.AskPeers())


def test_a_standby_that_streams_through_no_slot_is_attached_anew() -> None:
    """An agent of an older version let it: a connection of it that lingers could be counted beside the next."""
    o = observation(peers={"n1": peer(N1, NOW_MS, status=ServerStatus.PRIMARY, position=at(1, 120))})
    assert acts(o) == ()
    slotless = replace(o, server=replace(o.server, through_slot=False))
    assert decide(slotless).duty is Duty.FOLLOW
    assert any(isinstance(action, a.Follow) for action in acts(slotless))
    astray = replace(o, server=replace(o.server, upstream_host="n9:1"))
    assert acts(slotless) == acts(astray)


def test_what_is_new_in_a_register_is_written_down_once_it_is_quiet() -> None:
    """Not on the way of a failover: nobody waits for that write."""
    followed = register().requorumed(BOTH)
    o = observation(register=followed, remembered=(1, 0))
    assert (decide(o).rule.id, acts(o)) == ("follow.steady", (a.RememberRegister((1, 1)),))
    assert acts(replace(o, remembered=(1, 1))) == ()
    o = observation(N1, register=followed, remembered=(1, 0), server=primary(1, 100, str(BOTH)), lead_address=None)
    assert (decide(o).rule.id, acts(o)) == ("serve.steady", (a.RememberRegister((1, 1)),))


def test_every_register_is_newer_than_the_one_it_was_made_from() -> None:
    registers = [register()]
    registers.append(registers[-1].requorumed(BOTH))
    registers.append(registers[-1].handing_over("n2"))
    registers.append(registers[-1].opened())
    registers.append(registers[-1].chosen(N2))
    registers.append(registers[-1].served_by(N2, BOTH))
    ages = [r.age for r in registers]
    assert ages == sorted(set(ages))
