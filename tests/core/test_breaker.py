"""The breaker: one probe however many ask, failures in a row, no late word that undoes a newer one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.admission.breaker import DOUBLINGS_MAX, Breaker, BreakerLimits, BreakerState, Outcome, Trial

LIMITS = BreakerLimits(failures_max=3, open_ms=100, probe_ms=1000)
PAUSE_MAX_MS = LIMITS.open_ms * (1 << DOUBLINGS_MAX)


def fail(breaker: Breaker, times: int = 1, now_ms: float = 0) -> None:
    for _ in range(times):
        trial = breaker.ask(now_ms)
        assert trial is not None
        breaker.settle(trial, Outcome.FAILED, now_ms)


def opened(limits: BreakerLimits = LIMITS) -> Breaker:
    breaker = Breaker(limits)
    fail(breaker, limits.failures_max)
    return breaker


def test_failures_in_a_row_open_it_and_an_answer_begins_the_count_anew() -> None:
    breaker = Breaker(LIMITS)
    fail(breaker, 2)
    trial = breaker.ask(0)
    assert trial is not None
    breaker.settle(trial, Outcome.ALIVE, 0)
    fail(breaker, 2)
    assert breaker.state.value == "closed"
    fail(breaker)
    assert breaker.state.value == "open"
    assert breaker.ask(99) is None


@given(st.floats(100, 1e6), st.floats(0, 999))
def test_of_a_thousand_who_ask_exactly_one_probes(first_ms: float, within_ms: float) -> None:
    breaker = opened()
    times = (first_ms + within_ms * number / 1000 for number in range(1000))
    assert [breaker.ask(now_ms) is not None for now_ms in times] == [True] + 999 * [False]
    assert breaker.state.value == "half-open"


def test_a_probe_that_is_answered_lets_everybody_in() -> None:
    breaker = opened()
    probe = breaker.ask(100)
    assert probe is not None
    breaker.settle(probe, Outcome.ALIVE, 110)
    assert all(breaker.ask(110) is not None for _ in range(1000))


def test_each_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    breaker, now_ms, pauses = opened(), 0.0, []
    for _ in range(6):
        began_ms = now_ms
        while (probe := breaker.ask(now_ms)) is None:
            now_ms += 1
        pauses.append(now_ms - began_ms)
        breaker.settle(probe, Outcome.FAILED, now_ms)
    assert pauses == [100, 200, 400, 800, 800, 800]


def test_a_probe_that_was_given_up_leaves_its_place_to_the_next() -> None:
    breaker = opened()
    probe = breaker.ask(100)
    assert probe is not None
    breaker.settle(probe, Outcome.UNKNOWN, 150)
    assert breaker.ask(150) is not None
    assert breaker.ask(150) is None


def test_a_probe_that_hangs_does_not_keep_its_place_for_ever() -> None:
    breaker = opened()
    hung = breaker.ask(100)
    assert hung is not None
    assert breaker.ask(1099) is None
    probe = breaker.ask(1100)
    assert probe is not None
    breaker.settle(hung, Outcome.FAILED, 1200)  # says nothing any more
    assert breaker.state.value == "half-open"
    assert breaker.ask(1200) is None
    breaker.settle(probe, Outcome.ALIVE, 1300)
    assert breaker.state.value == "closed"


def test_failures_of_before_do_not_count_after_it_was_closed_again() -> None:
    breaker = Breaker(LIMITS)
    late = [breaker.ask(0) for _ in range(10)]
    fail(breaker, 3)
    probe = breaker.ask(100)
    assert probe is not None
    breaker.settle(probe, Outcome.ALIVE, 100)
    for trial in late:
        assert trial is not None
        breaker.settle(trial, Outcome.FAILED, 200)
    assert breaker.state.value == "closed"


def test_an_answer_that_comes_late_closes_it() -> None:
    breaker = Breaker(LIMITS)
    late = breaker.ask(0)
    assert late is not None
    fail(breaker, 3)
    breaker.settle(late, Outcome.ALIVE, 50)
    assert breaker.state.value == "closed"


def test_news_of_the_server_ends_the_pause_but_makes_no_second_probe() -> None:
    breaker = opened()
    breaker.hurry(10)
    assert breaker.ask(10) is not None
    breaker.hurry(11)
    assert breaker.ask(11) is None


def test_without_a_bound_it_never_opens_and_an_open_one_closes() -> None:
    off = BreakerLimits(0, 100, 1000)
    breaker = Breaker(off)
    fail(breaker, 100)
    assert breaker.state.value == "closed"
    breaker = opened()
    breaker.limits_are(off)
    assert breaker.ask(0) is not None


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["ask", "alive", "failed", "unknown", "wait", "hurry"]), st.integers(0, 500)), max_size=60
)


@given(steps)
def test_it_is_never_stuck_and_never_lets_two_probes_out(happened: list[Step]) -> None:
    breaker, now_ms = Breaker(LIMITS), 0.0
    out: list[Trial] = []
    for what, number in happened:
        if what == "wait":
            now_ms += number
        elif what == "hurry":
            breaker.hurry(now_ms)
        elif what == "ask":
            trial = breaker.ask(now_ms)
            if trial is not None:
                out.append(trial)
        elif out:
            breaker.settle(out.pop(number % len(out)), Outcome(what), now_ms)
        probes = [t for t in out if t.lapses_ms is not None and t.lapses_ms > now_ms]
        if breaker.state is not BreakerState.CLOSED:
            current = [t for t in probes if t.generation == breaker._generation]
            assert len(current) <= 1
    assert breaker.admits(now_ms + max(PAUSE_MAX_MS, LIMITS.probe_ms))


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_is_settled_twice_counts_once(outcome: Outcome) -> None:
    breaker = opened()
    probe = breaker.ask(100)
    assert probe is not None
    breaker.settle(probe, Outcome.FAILED, 100)
    breaker.settle(probe, Outcome.UNKNOWN, 100)
    assert breaker.ask(299) is None
    if outcome is Outcome.ALIVE:
        breaker.settle(probe, outcome, 150)
        assert breaker.ask(150) is not None
