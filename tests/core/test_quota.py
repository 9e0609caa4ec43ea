"""Quotas: nobody has more than his, and nobody waits for another's."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from holdfast.core.admission.gate import TENANTS_SWEPT, Gate, Permit
from holdfast.core.admission.quota import Quota
from holdfast.model.traffic import NORMAL, Each, TrafficClass


def gate(limit: int | None = None, **quota: object) -> Gate:
    made = Gate({NORMAL: TrafficClass.model_validate(quota)})
    made.limit = limit
    return made


def enter(g: Gate, tenant: str = "", now_ms: float = 0) -> Permit:
    permit = Permit(tenant=tenant)
    assert g.enter(permit, now_ms)
    return permit


def queue(g: Gate, tenant: str = "", now_ms: float = 0) -> Permit:
    permit = Permit(tenant=tenant)
    assert not g.enter(permit, now_ms)
    assert g.wait(permit, now_ms, 0.5) is None
    return permit


def test_who_has_his_share_waits_and_others_pass_him() -> None:
    g = gate(each=Each.USER, statements_max=1)
    first = enter(g, "etl")
    second = queue(g, "etl")
    other = enter(g, "shop")
    assert (g.inside, g.waiting, g.pressing(0), g.waited) == (2, 1, 0, 0)
    g.leave(other, 1)
    assert list(g.let_in(1)) == []
    g.leave(first, 2)
    assert g.pressing(2) == 1
    assert list(g.let_in(2)) == [second]


def test_with_a_limit_he_keeps_nobody_from_the_free_place() -> None:
    g = gate(2, each=Each.USER, statements_max=1)
    enter(g, "etl")
    queue(g, "etl")
    shop = enter(g, "shop")
    web = queue(g, "web")
    g.leave(shop, 1)
    assert list(g.let_in(1)) == [web]


def test_a_rate_lets_in_one_by_one_after_the_burst() -> None:
    g = gate(statements_per_s=10)
    permits = [enter(g) for _ in range(10)]
    for permit in permits:
        g.leave(permit, 0)
    late = [queue(g) for _ in range(3)]
    assert g.token_in_ms(0) == pytest.approx(100)
    assert list(g.let_in(99)) == []
    assert list(g.let_in(100)) == late[:1]
    assert list(g.let_in(300)) == late[1:]
    assert g.token_in_ms(300) is None


def test_a_refusal_names_the_quota_and_when_the_rate_allows_more() -> None:
    g = Gate({NORMAL: TrafficClass(each=Each.DATABASE, statements_per_s=2, queue_max=1, wait_max_ms=400)})
    for _ in range(2):
        enter(g, "bi")
    queue(g, "bi")
    refusal = g.wait(Permit(tenant="bi"), 0, 0.5)
    assert refusal is not None
    assert (refusal.quota, refusal.waiting, refusal.retry_ms) == ("database bi may have 2 a second", 1, 1000)
    enter(g, "shop")  # another's full line is not in its way
    ((_, overdue),) = g.overdue(400, 0.5)
    assert (overdue.quota, overdue.waited_ms) == ("database bi may have 2 a second", 400)


def test_those_who_wait_when_the_quota_changes_wait_by_the_new_one() -> None:
    classes = {NORMAL: TrafficClass(statements_max=1)}
    g = Gate(classes)
    first = enter(g)
    waiting = [queue(g) for _ in range(3)]
    g.classes_are({NORMAL: TrafficClass(statements_max=2)})
    assert list(g.let_in(1)) == waiting[:1]
    g.classes_are({NORMAL: TrafficClass()})
    assert list(g.let_in(2)) == waiting[1:]
    for permit in (first, *waiting):
        g.leave(permit, 3)
    g.classes_are(classes)
    enter(g)
    queue(g)


def test_a_quota_that_comes_while_statements_wait_for_the_database_starves_nobody() -> None:
    g = gate(1)
    first = enter(g)
    second = queue(g)
    g.classes_are({NORMAL: TrafficClass(statements_max=5, each=Each.USER)})
    g.leave(first, 1)
    assert list(g.let_in(1)) == [second]


def test_users_who_are_gone_are_forgotten() -> None:
    g = gate(each=Each.USER, statements_max=3)
    for n in range(3 * TENANTS_SWEPT):
        g.leave(enter(g, f"user{n}"), 0)
    assert len(g.lines[NORMAL].tenants) <= TENANTS_SWEPT


def test_without_bounds_there_is_no_quota() -> None:
    assert Quota.of(TrafficClass(each=Each.USER)) is None
    assert Quota.of(TrafficClass(statements_max=3).without_quota) is None
    for wrong in ({"statements_max": 0}, {"statements_per_s": 0}, {"statements_per_s": float("inf")}, {"each": "host"}):
        with pytest.raises(ValidationError):
            TrafficClass.model_validate(wrong)


MOVES = st.lists(st.tuples(st.sampled_from(["ask", "end", "later", "withdraw"]), st.integers(0, 2), st.integers(0, 40)))


@given(MOVES, st.sampled_from([None, 2, 4]), st.sampled_from([None, 1, 2]), st.sampled_from([None, 0.5, 3.0]))
@settings(max_examples=200, deadline=None)
def test_nobody_has_more_and_nobody_waits_for_nothing(
    moves: list[tuple[str, int, int]], limit: int | None, at_once: int | None, per_s: float | None
) -> None:
    g = gate(limit, each=Each.USER, statements_max=at_once, statements_per_s=per_s, wait_max_ms=600_000)
    now_ms, inside, waiting = 0.0, list[Permit](), list[Permit]()
    begun: dict[str, list[float]] = defaultdict(list)

    def begins(permit: Permit) -> None:
        inside.append(permit)
        begun[permit.tenant].append(now_ms)

    for what, user, number in moves:
        if what == "ask":
            permit = Permit(tenant=str(user))
            if g.enter(permit, now_ms):
                begins(permit)
            else:
                assert g.wait(permit, now_ms, 0.5) is None
                waiting.append(permit)
        elif what == "end" and inside:
            g.leave(inside.pop(number % len(inside)), now_ms)
        elif what == "withdraw" and waiting:
            g.withdraw(waiting.pop(number % len(waiting)))
        else:
            now_ms += number * 20
        for permit in g.let_in(now_ms):
            waiting.remove(permit)
            begins(permit)
        assert g.pressing(now_ms) == 0 or g.is_full
        assert g.waiting == len(waiting)
        for name in {p.tenant for p in inside}:
            assert at_once is None or sum(p.tenant == name for p in inside) <= at_once
    for times in begun.values():
        for i, first in enumerate(times):
            for count, last in enumerate(times[i:], 1):
                most = None if per_s is None else max(1.0, per_s) + (last - first) * per_s / 1000
                assert most is None or count <= most + 1e-3
    g.limit = None
    while waiting:  # whoever waits gets in when others end and time goes on
        now_ms += 2000
        for permit in inside:
            g.leave(permit, now_ms)
        inside.clear()
        let_in = list(g.let_in(now_ms))
        assert let_in
        for permit in let_in:
            waiting.remove(permit)
            inside.append(permit)
