"""How the leader keeps (S, k) true."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core import actions as a
from holdfast.core.handover import successor
from holdfast.core.membership import MembershipChange, MembershipRule, change_of, wants_lease
from holdfast.core.observation import Observation
from holdfast.model.lsn import Lsn
from holdfast.model.policy import Durability, Policy
from holdfast.model.register import Member, Phase, Quorum, Register
from tests.core.builders import BARRIER, BOTH, N1, N2, N3, NOW_MS, at, observation, peer, primary, register, streaming

ONLY_N2 = Quorum(frozenset({N2}), 1)


def leader(registered: Quorum, in_postgres: Quorum, *present: Member) -> tuple[Observation, Register]:
    reg = register().requorumed(registered)
    server = primary(1, 100, str(in_postgres), tuple(streaming(m, 100) for m in present))
    o = observation(N1, server=server, register=reg, settled_lsn=Lsn(100), lead_address=None)
    return replace(o, peers={m.node: peer(m) for m in present}), reg


def action(o: Observation, reg: Register) -> a.Action | None:
    change = change_of(o, reg)
    return None if change is None or not change.actions else change.actions[0]


def test_nothing_to_do() -> None:
    assert action(*leader(BOTH, BOTH, N2, N3)) is None


def test_a_newcomer_enters_the_register_then_postgresql() -> None:
    assert action(*leader(ONLY_N2, ONLY_N2, N2, N3)) == a.TellRegister(BOTH)
    assert action(*leader(BOTH, ONLY_N2, N2, N3)) == a.TellPostgres(BOTH)


def test_a_newcomer_whose_agent_has_not_promised_the_epoch_waits() -> None:
    o, reg = leader(ONLY_N2, ONLY_N2, N2, N3)
    assert action(replace(o, peers={"n2": peer(N2), "n3": peer(N3, promised=0)}), reg) is None


def test_a_newcomer_that_does_not_say_that_its_log_fits_waits() -> None:
    """It may go beyond the fork: then PostgreSQL would count what it does not have as confirmed."""
    reg = register(2, Phase.PROMOTING, N1).served_by(N1, ONLY_N2)
    server = primary(2, 100, str(ONLY_N2), (streaming(N2, 100), streaming(N3, 130)))
    o = observation(N1, server=server, register=reg, settled_lsn=Lsn(100), lead_address=None, promised=2)
    old = peer(N3, promised=2, position=at(1, 130))
    assert action(replace(o, peers={"n2": peer(N2, promised=2), "n3": old}), reg) is None
    new = peer(N3, promised=2, position=at(2, 130))
    both = Quorum(frozenset({N2, N3}), 1)
    assert action(replace(o, peers={"n2": peer(N2, promised=2), "n3": new}), reg) == a.TellRegister(both)


def test_a_silent_member_leaves_after_its_time() -> None:
    o, reg = leader(BOTH, BOTH, N2)
    assert action(replace(o, last_streamed_ms={N2: NOW_MS, N3: NOW_MS - 4999}), reg) is None
    assert action(replace(o, last_streamed_ms={N2: NOW_MS, N3: NOW_MS - 5000}), reg) == a.TellPostgres(ONLY_N2)
    o, reg = leader(BOTH, ONLY_N2, N2)
    gone = replace(o, last_streamed_ms={N2: NOW_MS, N3: NOW_MS - 5000})
    assert action(replace(gone, settled_lsn=None), reg) is None
    assert action(gone, reg) == a.TellRegister(ONLY_N2)


def test_a_directory_that_was_replaced_leaves_at_once() -> None:
    o, reg = leader(BOTH, BOTH, N2)
    renewed = replace(N3, incarnation="ffffffff")
    assert action(replace(o, peers={"n2": peer(N2), "n3": peer(renewed)}), reg) == a.TellPostgres(ONLY_N2)


def test_a_setting_that_is_none_of_ours_is_put_back() -> None:
    o, reg = leader(BOTH, BOTH, N2, N3)
    foreign = replace(o.server, synchronous_names="*")
    assert action(replace(o, server=foreign), reg) == a.TellPostgres(BOTH)
    emptied = replace(o.server, synchronous_names="")
    assert action(replace(o, server=emptied), reg) == a.TellPostgres(BOTH)


def test_a_switchover_needs_a_close_standby_and_another_to_confirm() -> None:
    o, _ = leader(BOTH, BOTH, N2, N3)
    assert successor(o, "n3")[0] == "n3"
    assert successor(o, None)[0] == "n2"
    assert successor(o, "n1") == (None, "n1 is the primary already")
    assert "there is no node n7" in successor(o, "n7")[1]
    far = replace(o.server, replicas=(streaming(N2, 100), replace(streaming(N3, 0), flush_lsn=Lsn(0))))
    behind = replace(o, server=replace(far, position=replace(far.position, lsn=Lsn(1 << 30))))  # type: ignore[type-var]
    assert "bytes behind" in successor(behind, "n3")[1]
    alone, _ = leader(BOTH, BOTH, N2)
    assert "nobody could confirm" in successor(alone, "n2")[1]
    assert "not a member that streams" in successor(alone, "n3")[1]
    assert "ask the primary's agent" in successor(observation(), None)[1]


def test_a_closed_leader_may_take_in_who_could_open_it() -> None:
    gone = Quorum(frozenset({replace(N2, incarnation="ffffffff")}), 1)
    o, reg = leader(gone, BOTH, N3)
    closed = replace(o, server=replace(o.server, synchronous_names=BARRIER))
    assert action(closed, reg) == a.TellRegister(Quorum(gone.members | {N3}, 1))
    assert action(replace(closed, server=replace(closed.server, replicas=())), reg) is None


def closed_and_alone(policy: Policy, leased_until_ms: int | None) -> tuple[Observation, Register]:
    o, reg = leader(BOTH, BOTH)
    server = replace(o.server, synchronous_names=BARRIER)
    silent = {N2: NOW_MS - 5000, N3: NOW_MS - 5000}
    return replace(o, server=server, policy=policy, last_streamed_ms=silent, leased_until_ms=leased_until_ms), reg


def test_a_closed_leader_that_may_degrade_opens_alone_with_the_lease() -> None:
    degrading = Policy(durability=Durability.DEGRADING)
    o, reg = closed_and_alone(degrading, NOW_MS + 1000)
    assert action(o, reg) == a.TellRegister(Quorum(BOTH.members, 0))
    without, _ = closed_and_alone(degrading, None)
    assert wants_lease(without, reg)
    assert change_of(without, reg) == MembershipChange(MembershipRule.LEASE_FIRST, ())
    strict, _ = closed_and_alone(Policy(), NOW_MS + 1000)
    assert change_of(strict, reg) is None
    assert not wants_lease(strict, reg)


def test_a_closed_leader_asks_for_fewer_confirmations_than_there_are_members_left() -> None:
    n4, n5 = Member("n4", "00000004"), Member("n5", "00000005")
    four = Quorum(frozenset({N2, N3, n4, n5}), 2)
    o, reg = leader(four, four, N2)
    silent = dict.fromkeys((N3, n4, n5), NOW_MS - 5000)
    closed = replace(o, server=replace(o.server, synchronous_names=BARRIER), last_streamed_ms=silent)
    assert action(closed, reg) == a.TellRegister(Quorum(four.members, 1))


def test_a_closed_leader_drops_nobody() -> None:
    o, reg = leader(BOTH, BOTH, N2)
    silent = {N3: NOW_MS - 5000}
    closed = replace(o, server=replace(o.server, synchronous_names=BARRIER), last_streamed_ms=silent)
    assert action(closed, reg) is None
