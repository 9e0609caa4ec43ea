"""The ramp: it never jumps, it always ends, and it steps back only while that makes sense."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.admission.ramp import (
    FLOOR,
    RULES,
    STEP_MIN_MS,
    Health,
    Ramp,
    begin,
    median_of,
    turn,
    usual_of,
)
from holdfast.model.ramp import Order

GOOD = Health(latency_ms=2, usual_ms=2, waited=9)
UNUSED = Health(latency_ms=None, usual_ms=2, waited=0)
SO_SO = Health(latency_ms=20, usual_ms=2, waited=9)
BAD = Health(latency_ms=2000, usual_ms=2, waited=9)
UNKNOWN = Health(latency_ms=None, usual_ms=None, waited=9)


def ramp(usual: int = 100, *, window_ms: int = 60_000, start_percent: int = 10) -> Ramp:
    made = begin(usual, start_percent=start_percent, window_ms=window_ms, now_ms=0)
    assert made is not None
    return made


def climb(made: Ramp, health: Health) -> list[tuple[float, int, str]]:
    """(when, limit before, rule) of each move until the end, judged ten times a second."""
    moves: list[tuple[float, int, str]] = []
    now_ms, now = 0.0, made
    while now_ms < 10 * made.window_ms:
        now_ms += 100
        next_turn = turn(now, now_ms, health)
        if next_turn.moves:
            moves.append((now_ms, now.limit, next_turn.rule))
        if next_turn.ramp is None:
            return moves
        now = next_turn.ramp
    raise AssertionError("it does not end")


def test_a_healthy_server_has_everything_back_within_seconds() -> None:
    for health in (GOOD, UNUSED):
        moves = climb(ramp(), health)
        assert [limit for _, limit, _ in moves] == [10, 20, 40, 80]
        assert {rule for _, _, rule in moves} == {"ramp.early"}
        assert moves[-1][0] == 4 * STEP_MIN_MS


def test_a_slow_one_takes_the_window() -> None:
    for health in (SO_SO, UNKNOWN):
        moves = climb(ramp(), health)
        assert [limit for _, limit, _ in moves] == [10, 20, 40, 80]
        assert {rule for _, _, rule in moves} == {"ramp.time"}
        assert moves[-1][0] == 60_000


def test_one_that_gets_worse_steps_back_and_still_ends() -> None:
    moves = climb(ramp(), BAD)
    assert "ramp.back" in {rule for _, _, rule in moves}
    assert moves[-1][0] <= 2 * 60_000
    assert not [rule for at, _, rule in moves if at > 60_000 and rule == "ramp.back"]


def test_a_person_may_hold_it_and_end_it() -> None:
    held = ramp().ordered(Order.HOLD)
    assert turn(held, 1e9, GOOD).ramp == held
    assert turn(held, 1e9, GOOD).rule == "ramp.hold"
    assert turn(held.ordered(Order.RESUME), 1e9, GOOD).rule == "ramp.early"
    faster = turn(ramp().ordered(Order.FASTER), 1, BAD)
    assert (faster.rule, faster.ramp and faster.ramp.limit, faster.ramp and faster.ramp.order) == (
        "ramp.faster",
        20,
        None,
    )
    assert turn(ramp().ordered(Order.END), 1, BAD).ramp is None


def test_few_statements_are_not_limited() -> None:
    assert begin(FLOOR, start_percent=10, window_ms=60_000, now_ms=0) is None
    assert begin(1000, start_percent=100, window_ms=60_000, now_ms=0) is None
    assert (ramp(FLOOR + 1).limit, ramp(FLOOR + 1).percents) == (FLOOR, (80,))
    assert (ramp(3 * FLOOR).limit, ramp(3 * FLOOR).percents) == (FLOOR, (20, 40, 80))


def test_a_burst_is_not_usual_and_neither_are_the_last_seconds_of_a_hung_primary() -> None:
    assert usual_of([]) == 0
    assert usual_of([5]) == 5
    assert usual_of([10] * 56 + [500, 1000, 2000, 4000]) == 10


def test_a_few_statements_are_no_measure() -> None:
    assert median_of([1, 2, 3, 4]) is None
    assert median_of([1, 2, 3, 4, 100]) == 3


HEALTHS = st.sampled_from((GOOD, UNUSED, SO_SO, BAD, UNKNOWN))
ORDERS = st.sampled_from((None, None, None, None, Order.HOLD, Order.RESUME, Order.FASTER))


STEPS = st.lists(st.tuples(HEALTHS, ORDERS, st.integers(1, 5000)), max_size=200)


@pytest.mark.parametrize("start_percent", [1, 10, 30, 99])
@given(
    usual=st.integers(FLOOR + 1, 5000), steps=st.lists(st.tuples(HEALTHS, ORDERS, st.integers(1, 5000)), max_size=200)
)
@settings(max_examples=60, deadline=None)
def test_it_never_jumps(start_percent: int, usual: int, steps: list[tuple[Health, Order | None, int]]) -> None:
    """No step more than doubles what was let in, whatever the server does and people say; each has a rule."""
    now_ms, now = 0.0, ramp(usual, start_percent=start_percent)
    assert now.limit <= max(FLOOR, usual * start_percent / 100 + 1)
    for health, order, passes_ms in steps:
        now_ms += passes_ms
        moved = turn(now if order is None else now.ordered(order), now_ms, health)
        assert moved.rule in RULES
        limit = moved.ramp.limit if moved.ramp is not None else usual
        assert limit <= max(2 * now.limit, FLOOR)
        if moved.ramp is None:
            return
        now = moved.ramp
