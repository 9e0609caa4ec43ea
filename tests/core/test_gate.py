"""The gate: nobody beyond the limit, no class above its share for ever, nobody waits for ever."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.core.admission.gate import LONG_MS, RETRY_MAX_MS, RETRY_MIN_MS, Gate, Line, Permit
from holdfast.model.traffic import BUILT_IN, NORMAL, TrafficClass, class_of

WIDE = {name: c.model_copy(update={"most_percent": 100}) for name, c in BUILT_IN.items()}


def gate(limit: int | None, classes: Mapping[str, TrafficClass] = WIDE) -> Gate:
    made = Gate(classes)
    made.limit = limit
    return made


def most(line: Line, limit: int) -> int:
    return max(1, -(-limit * line.settings.most_percent // 100))


def enter(g: Gate, name: str = NORMAL, now_ms: float = 0) -> Permit:
    permit = Permit(name)
    assert g.enter(permit, now_ms)
    return permit


def queue(g: Gate, name: str = NORMAL, now_ms: float = 0) -> Permit:
    permit = Permit(name)
    assert not g.enter(permit, now_ms)
    assert g.wait(permit, now_ms, 0.5) is None
    return permit


def test_without_a_limit_everybody_goes_in() -> None:
    g = gate(None)
    permits = [enter(g) for _ in range(1000)]
    assert (g.inside, g.waiting, g.take_peak()) == (1000, 0, 1000)
    for permit in permits:
        g.leave(permit, 7)
    assert (g.inside, g.take_peak(), g.take_peak()) == (0, 1000, 0)
    assert list(g.durations_ms) == [7] * 1000


def test_going_in_freely_is_going_in() -> None:
    classes = {**WIDE, "bounded": TrafficClass(statements_max=1)}
    one, other = gate(None, classes), gate(None, classes)
    first, second = Permit(), Permit()
    assert one.enter(first, 3)
    assert other.enter_freely(second, 3)
    for g, permit in ((one, first), (other, second)):
        assert (g.inside, g.short, g.peak, list(g.lines[NORMAL].short)) == (1, 1, 1, [permit])
        assert permit.is_in
        assert permit.since_ms == 3
    bounded = Permit("bounded")
    assert not other.enter_freely(bounded, 4)  # the class has a quota
    assert not bounded.is_in
    other.limit = 5
    assert not other.enter_freely(Permit(), 4)
    other.leave(second, 5)
    assert (other.inside, other.done, list(other.durations_ms)) == (0, 1, [2])


def test_a_limit_holds_and_those_who_wait_go_in_as_they_came() -> None:
    g = gate(2)
    first, _second = enter(g), enter(g)
    third, fourth = queue(g), queue(g)
    assert list(g.let_in(0)) == []
    g.leave(first, 1)
    assert not g.enter(Permit(), 1)  # nobody passes those who wait
    assert list(g.let_in(1)) == [third]
    assert third.is_in
    g.limit = None
    assert list(g.let_in(1)) == [fourth]


def test_who_must_go_in_does_and_counts() -> None:
    g = gate(1)
    enter(g)
    queue(g)
    assert g.enter(Permit(), 0, must=True)
    assert g.inside == 2


def test_a_place_that_is_given_back_says_nothing_of_the_server() -> None:
    g = gate(1)
    g.give_back(enter(g))
    assert (g.inside, list(g.durations_ms)) == (0, [])


def test_when_to_come_back_follows_from_this_crowd_not_from_an_old_one() -> None:
    g = gate(1, {NORMAL: TrafficClass(queue_max=1)})
    g.long_ms = math.inf
    now = enter(g)
    g.withdraw(queue(g))
    hour_ms = 3_600_000.0
    queue(g, now_ms=hour_ms)
    for step in range(20):
        g.leave(now, hour_ms + 5 * step)
        (now,) = g.let_in(hour_ms + 5 * step)
        queue(g, now_ms=hour_ms + 5 * step)
    refusal = g.wait(Permit(), hour_ms + 100, 0.5)
    assert refusal is not None
    assert refusal.retry_ms == RETRY_MIN_MS


def test_a_permit_that_is_withdrawn_gets_nothing() -> None:
    g = gate(1)
    first = enter(g)
    second, third = queue(g), queue(g)
    g.withdraw(second)
    g.leave(first, 0)
    assert list(g.let_in(0)) == [third]
    assert not second.is_in


def test_long_ones_give_their_places_to_others_but_never_more_than_the_limit() -> None:
    g = gate(2)
    for _ in range(2):
        enter(g)
    waiting = [queue(g, now_ms=LONG_MS - 1) for _ in range(5)]
    assert list(g.let_in(LONG_MS - 1)) == []
    assert list(g.let_in(LONG_MS)) == waiting[:2]
    assert list(g.let_in(3 * LONG_MS)) == []  # two long ones are aside, and two more are inside
    assert g.inside == 4
    g.leave(waiting[0], 3 * LONG_MS)
    assert list(g.let_in(3 * LONG_MS)) == [waiting[2]]


def test_long_ones_of_a_class_have_no_more_than_its_part_either() -> None:
    g = gate(10, BUILT_IN)
    for now_ms in (0, LONG_MS, 2 * LONG_MS, 3 * LONG_MS):
        for _ in range(3):
            permit = Permit("background")
            if not g.enter(permit, now_ms):
                g.wait(permit, now_ms, 0.5)
    line = g.lines["background"]
    assert (len(line.short), len(line.long), len(line.waiting)) == (3, 3, 6)
    assert all(g.enter(Permit("critical"), 3 * LONG_MS) for _ in range(7))


def test_a_class_has_at_most_its_part_and_always_one() -> None:
    classes = {**BUILT_IN, "background": TrafficClass(share=10, most_percent=30)}
    g = gate(10, classes)
    for _ in range(3):
        enter(g, "background")
    late = queue(g, "background")
    assert enter(g, "critical").is_in  # there is room, though somebody waits
    assert list(g.let_in(0)) == []
    assert not late.is_in
    small = gate(1, classes)
    assert enter(small, "background").is_in


def test_places_are_given_in_proportion_to_shares() -> None:
    """Also when the statements of the class with the smallest share take a hundred times as long."""
    g = gate(10)
    for _ in range(100):
        for name in WIDE:
            permit = Permit(name)
            if not g.enter(permit, 0):
                g.wait(permit, 0, 0.5)
    ends: list[tuple[float, int, Permit]] = [
        (1.0, n, p) for n, p in enumerate(p for line in g.lines.values() for p in line.short)
    ]
    inside: Counter[str] = Counter()
    for now in range(1, 400):
        for end in [e for e in ends if e[0] <= now]:
            ends.remove(end)
            g.leave(end[2], now)
            g.wait(Permit(end[2].traffic_class), now, 0.5)
        for permit in g.let_in(now):
            ends.append((now + (100 if permit.traffic_class == "background" else 1), now, permit))
        for name, line in g.lines.items():
            inside[name] += len(line.short)
    assert inside["critical"] > 1.5 * inside[NORMAL] > 1.5 * inside["background"] > 0


def test_nobody_starves_even_at_one_place() -> None:
    g = gate(1)
    now, served = enter(g, "critical"), Counter[str]()
    for name in WIDE:
        queue(g, name)
    for step in range(1000):
        g.leave(now, step)
        queue_again = now.traffic_class
        (now,) = g.let_in(step)
        served[now.traffic_class] += 1
        again = Permit(queue_again)
        assert g.wait(again, step, 0.5) is None
    assert served["critical"] > served[NORMAL] > served["background"] > 50


def test_a_class_that_was_silent_is_not_owed_the_past() -> None:
    g = gate(1)
    now = enter(g, "critical")
    queue(g, "critical")
    for step in range(500):
        g.leave(now, step)
        (now,) = g.let_in(step)
        queue(g, "critical", step)
    for _ in range(100):
        queue(g, "background", 500)
    got = Counter[str]()
    for step in range(500, 570):
        g.leave(now, step)
        (now,) = g.let_in(step)
        got[now.traffic_class] += 1
        queue(g, "critical", step)
    assert got["critical"] >= 55


def test_too_many_are_refused_at_once_and_told_when_to_come_back() -> None:
    g = gate(1, {NORMAL: TrafficClass(queue_max=2)})
    enter(g)
    queue(g)
    queue(g)
    refused = [g.wait(Permit(), 0, jitter) for jitter in (0.0, 0.5, 1.0)]
    assert all(r is not None and r.waited_ms is None and r.waiting == 2 for r in refused)
    retries = [r.retry_ms for r in refused if r is not None]
    assert retries == sorted(set(retries))
    assert retries[0] >= RETRY_MIN_MS / 2
    assert retries[-1] <= RETRY_MAX_MS * 1.5
    assert g.lines[NORMAL].refused == 3


def test_who_waited_long_enough_is_refused() -> None:
    g = gate(1, {NORMAL: TrafficClass(wait_max_ms=3000)})
    enter(g)
    first, second = queue(g, now_ms=0), queue(g, now_ms=1)
    assert list(g.overdue(2999, 0.5)) == []
    ((who, refusal),) = g.overdue(3000, 0.5)
    assert who is first
    assert refusal.waited_ms == 3000
    assert g.waiting == 1
    assert not second.is_in


def test_other_classes_at_run_time_lose_nobody() -> None:
    g = gate(1, {**BUILT_IN, "reports": TrafficClass()})
    inside = enter(g, "reports")
    late = queue(g, "reports")
    g.classes_are(BUILT_IN)
    g.leave(inside, 0)
    assert list(g.let_in(0)) == [late]
    g.leave(late, 0)
    g.classes_are(BUILT_IN)
    assert set(g.lines) == set(BUILT_IN)
    assert enter(g, "reports").traffic_class == NORMAL


def test_the_class_of_a_session_is_the_most_particular_that_takes_it() -> None:
    classes = {
        **BUILT_IN,
        "critical": TrafficClass(share=60, users=("pay",)),
        "background": TrafficClass(share=10, users=("pay", "etl"), application_names=("nightly",)),
        "reports": TrafficClass(share=5, databases=("stats",)),
    }
    assert class_of(classes, "pay", "shop", "web") == "critical"
    assert class_of(classes, "pay", "shop", "nightly") == "background"
    assert class_of(classes, "pay", "stats", "web") == "reports"
    assert class_of(classes, "etl", "shop", "psql") == NORMAL
    assert class_of(BUILT_IN, "anyone", "any", "any") == NORMAL


Move = tuple[str, str, int]
ACTS = st.sampled_from(("ask", "end", "withdraw", "limit", "pass"))
MOVES = st.lists(st.tuples(ACTS, st.sampled_from(tuple(BUILT_IN)), st.integers(0, 50)), max_size=300)


@pytest.mark.parametrize("classes", [WIDE, BUILT_IN], ids=["wide", "capped"])
@given(moves=MOVES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens(classes: Mapping[str, TrafficClass], moves: list[Move]) -> None:
    """No place beyond the limit, no place unused while somebody may have it, nobody lost, nobody twice."""
    g = gate(3, classes)
    now, inside, waiting = 0.0, [], []
    for what, name, number in moves:
        if what == "ask":
            permit = Permit(name)
            if g.enter(permit, now):
                inside.append(permit)
            elif g.wait(permit, now, 0.5) is None:
                waiting.append(permit)
        elif what == "end" and inside:
            g.leave(inside.pop(number % len(inside)), now)
        elif what == "withdraw" and waiting:
            g.withdraw(waiting.pop(number % len(waiting)))
        elif what == "limit":
            before = g.inside
            g.limit = 1 + number % 8
            if before > 2 * g.limit:
                continue
        else:
            now += number * 40
        for permit in g.let_in(now):
            waiting.remove(permit)
            inside.append(permit)
        for permit, _ in g.overdue(now, 0.5):
            waiting.remove(permit)
        assert g.limit is not None
        assert g.inside == len(inside)
        assert g.waiting == len(waiting)
        assert all(permit.is_in for permit in inside)
        assert not any(permit.is_in for permit in waiting)
        lines = g.lines.values()
        short = sum(len(line.short) for line in lines)
        assert g.inside - short <= 8
        assert not any(line.waiting and short < g.limit and len(line.short) < most(line, g.limit) for line in lines)
    g.limit = None
    assert sorted(map(id, g.let_in(now))) == sorted(map(id, waiting))
