"""Quorum arithmetic, by enumeration: small enough to look at every case."""

from __future__ import annotations

from functools import partial
from itertools import chain, combinations

import pytest

from holdfast.core.durability import confirmations
from holdfast.core.quorum import (
    SetPostgres,
    SetRegister,
    covered,
    default_k,
    implies,
    next_step,
    recruits_suffice,
    tolerance,
    wanted_quorum,
)
from holdfast.model.lsn import Lsn
from holdfast.model.policy import Durability, Policy
from holdfast.model.register import NO_QUORUM, Configuration, Member, Quorum

M = tuple(Member(f"n{i}", f"0000000{i}") for i in range(1, 5))
LEADER = Member("n9", "00000009")


def subsets(members: tuple[Member, ...]) -> list[frozenset[Member]]:
    return [frozenset(c) for c in chain.from_iterable(combinations(members, n) for n in range(len(members) + 1))]


def quorums(members: tuple[Member, ...]) -> list[Quorum]:
    return [Quorum(s, k) for s in subsets(members) for k in range(len(s) + 1)]


def acknowledging_sets(quorum: Quorum) -> list[frozenset[Member]]:
    return [s for s in subsets(M) if len(s & quorum.members) >= quorum.k]


def test_enough_recruits_meet_every_set_that_could_have_acknowledged() -> None:
    for quorum in quorums(M):
        committed = Configuration(LEADER, 1, quorum)
        for recruits in subsets(M):
            meets_all = all(recruits & quorum.members & acked for acked in acknowledging_sets(quorum))
            assert recruits_suffice(committed, recruits) == meets_all, (quorum, recruits)
        assert recruits_suffice(committed, {LEADER})


def test_implication_means_that_every_acknowledgement_of_one_is_one_of_the_other() -> None:
    for strong in quorums(M[:3]):
        for weak in quorums(M[:3]):
            holds = all(len(s & weak.members) >= weak.k for s in acknowledging_sets(strong))
            if implies(strong, weak):
                assert holds, (strong, weak)


def test_every_change_ends_at_its_goal_and_postgres_always_implies_the_register() -> None:
    everybody_flushed = dict.fromkeys(M, Lsn(100))
    for start in quorums(M[:3]):
        if start.k == 0:
            continue
        for goal in quorums(M[:3]):
            if goal.k == 0 or not (start.members <= goal.members or goal.members <= start.members):
                continue
            registered = in_postgres = start
            for _ in range(6):
                step = next_step(registered, in_postgres, goal, everybody_flushed, Lsn(100))
                if step is None:
                    break
                if isinstance(step, SetPostgres):
                    in_postgres = step.quorum
                else:
                    registered = step.quorum
                assert implies(in_postgres, registered), (start, goal)
            if implies(goal, start) or implies(start, goal):
                assert (registered, in_postgres) == (goal, goal), (start, goal)


def test_the_register_does_not_tighten_before_the_log_is_where_it_will_say() -> None:
    two, one = Quorum(frozenset(M[:2]), 1), Quorum(frozenset(M[:1]), 1)
    assert next_step(two, two, one, {}, None) == SetPostgres(one)
    assert next_step(two, one, one, {M[0]: Lsn(100)}, None) is None
    assert next_step(two, one, one, {M[0]: Lsn(99)}, Lsn(100)) is None
    assert next_step(two, one, one, {M[0]: Lsn(100)}, Lsn(100)) == SetRegister(one)


def test_a_member_is_added_to_the_register_first() -> None:
    one, two = Quorum(frozenset(M[:1]), 1), Quorum(frozenset(M[:2]), 1)
    assert next_step(one, one, two, {}, None) == SetRegister(two)
    assert next_step(two, one, two, {}, None) == SetPostgres(two)
    assert next_step(two, two, two, {}, None) is None


NOBODY: frozenset[Member] = frozenset()


def wanted(
    registered: Quorum,
    streaming: frozenset[Member],
    leaving: frozenset[Member],
    durability: Durability = Durability.STRICT,
    asked: int | None = None,
) -> Quorum:
    count = partial(confirmations, Policy(durability=durability, confirmations=asked))
    return wanted_quorum(registered, streaming, leaving, count, durability is Durability.DEGRADING)


def test_the_last_member_is_never_dropped() -> None:
    alone = Quorum(frozenset(M[:1]), 1)
    assert wanted(alone, NOBODY, frozenset(M[:1])) == alone
    two = Quorum(frozenset(M[:2]), 1)
    assert wanted(two, NOBODY, frozenset(M[:2])) == two
    assert wanted(two, frozenset(M[:1]), frozenset(M[1:2])) == alone


def test_a_newcomer_is_taken_in_before_a_silent_one_is_dropped() -> None:
    dead, new = M[0], M[1]
    taken_in = wanted(Quorum(frozenset({dead}), 1), frozenset({new}), frozenset({dead}))
    assert taken_in == Quorum(frozenset({dead, new}), 1)


def test_without_a_standby_commits_become_local_only_where_they_may() -> None:
    two = Quorum(frozenset(M[:2]), 1)
    gone = frozenset(M[:2])
    assert wanted(two, NOBODY, gone, Durability.STRICT) == two
    assert wanted(two, NOBODY, gone, Durability.DEGRADING) == Quorum(gone, 0)
    assert wanted(two, NOBODY, NOBODY, Durability.DEGRADING) == two
    degraded = Quorum(gone, 0)
    assert wanted(degraded, NOBODY, gone, Durability.DEGRADING) == degraded
    assert wanted(degraded, frozenset(M[:1]), frozenset(M[1:2]), Durability.DEGRADING) == Quorum(frozenset(M[:1]), 0)
    assert wanted(Quorum(frozenset(M[:1]), 0), frozenset(M[:1]), NOBODY) == Quorum(frozenset(M[:1]), 1)


def test_asynchronous_commits_are_local_and_the_members_known() -> None:
    both = frozenset(M[:2])
    assert wanted(Quorum(both, 1), both, NOBODY, Durability.ASYNCHRONOUS) == Quorum(both, 0)
    assert wanted(Quorum(both, 0), both | {M[2]}, NOBODY, Durability.ASYNCHRONOUS) == Quorum(both | {M[2]}, 0)
    assert wanted(Quorum(both, 0), both, NOBODY, Durability.STRICT) == Quorum(both, 1)


def test_confirmations_that_were_asked_for_are_kept_or_degraded_as_the_policy_says() -> None:
    three, two = frozenset(M[:3]), frozenset(M[:2])
    assert wanted(Quorum(three, 1), three, NOBODY, asked=2) == Quorum(three, 2)
    lost = M[2:3]
    assert wanted(Quorum(three, 2), two, frozenset(lost), asked=2) == Quorum(two, 2)
    assert wanted(Quorum(two, 2), frozenset(M[:1]), frozenset(M[1:2]), asked=2) == Quorum(two, 2)
    degraded = wanted(Quorum(two, 2), frozenset(M[:1]), frozenset(M[1:2]), Durability.DEGRADING, asked=2)
    assert degraded == Quorum(two, 1)
    assert wanted(Quorum(two, 1), frozenset(M[:1]), NOBODY, asked=2) == Quorum(two, 1)


def test_commits_turn_local_in_the_register_first_and_back_in_postgresql_first() -> None:
    both, local = Quorum(frozenset(M[:2]), 1), Quorum(frozenset(M[:2]), 0)
    flushed = dict.fromkeys(M, Lsn(100))
    assert next_step(both, both, local, flushed, Lsn(100)) == SetRegister(local)
    assert next_step(local, both, local, flushed, Lsn(100)) == SetPostgres(local)
    assert next_step(local, NO_QUORUM, local, flushed, Lsn(100)) is None
    assert next_step(local, NO_QUORUM, both, flushed, Lsn(100)) == SetPostgres(both)
    assert next_step(local, both, both, flushed, None) is None
    assert next_step(local, both, both, flushed, Lsn(100)) == SetRegister(both)


@pytest.mark.parametrize(("size", "k"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_default_k_is_half_rounded_up(size: int, k: int) -> None:
    assert default_k(size) == k


def test_covered_counts_members_only() -> None:
    quorum = Quorum(frozenset(M[:2]), 1)
    assert not covered(quorum, {M[2]: Lsn(100)}, Lsn(100))
    assert covered(quorum, {M[1]: Lsn(100)}, Lsn(100))


def test_tolerance_of_three_nodes() -> None:
    both = Quorum(frozenset(M[:2]), 1)
    assert tolerance(both, M[:2]).primary
    assert tolerance(both, M[:2]).standbys == 1
    assert not tolerance(both, M[:1]).primary
    assert tolerance(both, M[:1]).standbys == 0


def test_a_quorum_that_nobody_can_satisfy_is_no_value() -> None:
    with pytest.raises(ValueError, match="can never be satisfied"):
        Quorum(frozenset(M[:1]), 2)


def test_quorums_survive_the_way_through_postgresql() -> None:
    for quorum in quorums(M):
        if quorum.members:
            assert Quorum.parse(str(quorum)) == quorum
    for foreign in ("", "*", "ANY 1 (holdfast_barrier)", "FIRST 1 (n1_00000001)", "ANY 1 (n1_00000001, someone)"):
        assert Quorum.parse(foreign) is None
