"""The ramp: it never jumps, it always ends, and it steps back only while that makes sense."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.core.admission.gate import Gate, Permit
from holdfast.core.admission.ramp import (
    FLOOR,
    RULES,
    STEP_MIN_MS,
    Health,
    Ramp,
    Turn,
    begin,
    median_of,
    turn,
    usual_of,
)
from holdfast.model.ramp import Order
from holdfast.model.traffic import BUILT_IN

GOOD = Health(latency_ms=2, usual_ms=2, waited=9)
UNUSED = Health(latency_ms=None, usual_ms=2, waited=0)
SO_SO = Health(latency_ms=20, usual_ms=2, waited=9)
BAD = Health(latency_ms=2000, usual_ms=2, waited=9)
UNKNOWN = Health(latency_ms=None, usual_ms=None, waited=9)


def ramp(usual: int = 100, *, window_ms: int = 60_000, start_percent: int = 10) -> Ramp:
    made = begin(usual, start_percent=start_percent, window_ms=window_ms, now_ms=0)
    assert made is not None
    return made


def climb(made: Ramp, health: Health, clients: int = 90) -> list[tuple[float, int, str]]:
    """(when, limit before, rule) of each move until the end, judged ten times a second.

    ``clients`` want in without a pause, so that somebody waits while fewer may.
    """
    moves: list[tuple[float, int, str]] = []
    now_ms, now = 0.0, made
    while now_ms < 10 * made.window_ms:
        now_ms += 100
        next_turn = turn(now, now_ms, replace(health, waited=max(0, clients - now.limit)))
        if next_turn.moves:
            moves.append((now_ms, now.limit, next_turn.rule))
        if next_turn.ramp is None:
            return moves
        now = next_turn.ramp
    raise AssertionError("it does not end")


def test_a_healthy_server_has_everything_back_within_seconds() -> None:
    for health in (GOOD, UNUSED):
        moves = climb(ramp(), health, clients=80)
        assert (moves[0][1], moves[-1][2]) == (10, "ramp.early")
    moves = climb(ramp(), GOOD, clients=80)
    assert [limit for _, limit, _ in moves] == [10, 20, 40, 80]
    assert moves[-1][0] == 4 * STEP_MIN_MS
    assert climb(ramp(), UNUSED, clients=5)[-1][0] == 4 * STEP_MIN_MS


def test_a_slow_one_takes_the_window() -> None:
    for health in (SO_SO, UNKNOWN):
        moves = climb(ramp(), health)
        assert [limit for _, limit, _ in moves] == [10, 20, 40, 80, 160]
        assert {rule for _, _, rule in moves[:-1]} == {"ramp.time"}
        assert moves[-2][0] == 60_000
        assert moves[-1] == (61_000, 160, "ramp.early")  # nobody waits any more


def test_one_that_gets_worse_steps_back_and_still_ends() -> None:
    moves = climb(ramp(), BAD)
    assert "ramp.back" in {rule for _, _, rule in moves}
    assert moves[-1][0] <= 2 * 60_000
    assert not [rule for at, _, rule in moves if at > 60_000 and rule == "ramp.back"]


def test_a_slow_server_before_which_nobody_waits_is_no_reason_to_step_back() -> None:
    slow = replace(BAD, waited=0)
    assert turn(replace(ramp(), step=1), 1000, slow).rule == "ramp.early"


def test_it_is_not_over_while_a_backlog_is_left() -> None:
    moves = climb(ramp(), GOOD, clients=5000)
    limits = [limit for _, limit, _ in moves]
    assert limits == [10 << n for n in range(len(limits))]
    assert limits[-1] >= 5000


def test_it_is_over_where_another_bound_is_narrower() -> None:
    """Else it would go on for ever: somebody always waits before that one."""
    assert begin(100, start_percent=10, window_ms=60_000, now_ms=0, most=10) is None
    going = begin(100, start_percent=10, window_ms=60_000, now_ms=0, most=30)
    assert going is not None
    going = turn(going, 1000, GOOD, most=30).ramp
    assert going is not None
    assert going.limit == 20
    assert turn(going, 2000, GOOD, most=30) == Turn(None, "ramp.early")


def test_a_person_may_hold_it_speed_it_up_and_end_it() -> None:
    held = ramp().ordered(Order.HOLD)
    assert turn(held, 1e9, GOOD) == Turn(held, "ramp.hold")
    assert turn(held.ordered(Order.RESUME), 1e9, GOOD).rule == "ramp.early"
    faster = turn(held.ordered(Order.FASTER), 1, BAD)
    assert faster.ramp is not None
    assert (faster.rule, faster.ramp.limit, faster.ramp.faster, faster.ramp.is_held) == ("ramp.faster", 20, False, True)
    assert turn(held.ordered(Order.END), 1, BAD).ramp is None


def test_few_statements_are_not_limited() -> None:
    assert begin(FLOOR, start_percent=10, window_ms=60_000, now_ms=0) is None
    assert begin(1000, start_percent=100, window_ms=60_000, now_ms=0) is None
    assert (ramp(FLOOR + 1).limit, ramp(FLOOR + 1).percent) == (FLOOR, 80)
    assert (ramp(3 * FLOOR).limit, ramp(3 * FLOOR).percent) == (FLOOR, 20)


def test_the_server_meets_the_backlog_as_the_ramp_says() -> None:
    """Gate and ramp together: 5,000 held statements of 100 ms each; what is inside never more than doubles."""
    gate, now = Gate(BUILT_IN), ramp(100)
    gate.limit = now.limit
    ends: deque[tuple[int, Permit]] = deque()
    for _ in range(5000):
        permit = Permit()
        if gate.enter(permit, 0):
            ends.append((100, permit))
        else:
            assert gate.wait(permit, 0, 0.5) is None
    inside, waited = [gate.inside], gate.waited
    going: Ramp | None = now
    for now_ms in range(100, 60_000, 100):
        while ends and ends[0][0] <= now_ms:
            gate.leave(ends.popleft()[1], now_ms)
        if going is not None:
            health = Health(median_of(gate.durations_ms), 100, gate.waited - waited + gate.pressing(now_ms))
            turned = turn(going, now_ms, health)
            if turned.moves:
                going, waited = turned.ramp, gate.waited
                gate.durations_ms.clear()
                gate.limit = going.limit if going is not None else None
        ends.extend((now_ms + 100, permit) for permit in gate.let_in(now_ms))
        inside.append(gate.inside)
        if going is None and not ends:
            break
    assert going is None
    assert gate.waiting == gate.inside == 0
    assert all(after <= max(2 * before, FLOOR) for before, after in pairwise(inside) if after > before)


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
@given(usual=st.integers(FLOOR + 1, 5000), steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_it_never_jumps(start_percent: int, usual: int, steps: list[tuple[Health, Order | None, int]]) -> None:
    """No step more than doubles what was let in, whatever the server does and people say; each has a rule.

    It ends by itself only when nobody waits.
    """
    now_ms, now = 0.0, ramp(usual, start_percent=start_percent)
    assert now.limit <= max(FLOOR, usual * start_percent / 100 + 1)
    for health, order, passes_ms in steps:
        now_ms += passes_ms
        moved = turn(now if order is None else now.ordered(order), now_ms, health)
        assert moved.rule in RULES
        if moved.ramp is None:
            assert health.waited == 0
            assert 2 * now.limit >= usual
            return
        assert moved.ramp.limit <= max(2 * now.limit, FLOOR)
        now = moved.ramp
