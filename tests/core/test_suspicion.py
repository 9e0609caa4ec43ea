"""Who is suspected of a loss, and how a suspect proves that it does no harm."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.admission.quarantine import STEP_MIN_MS, Trial
from holdfast.core.admission.ramp import FLOOR
from holdfast.core.admission.suspicion import (
    LOOKS_MIN,
    RULES,
    SUSPECTS_MAX,
    Accusation,
    InFlight,
    Usual,
    accuse,
    accused,
    is_over,
    judged,
    proven,
)
from holdfast.model.suspect import Standing, Suspect, Verdict

NORMAL = ("pay", "read", "list")


def usual(looks: int = 100, seed: int = 1) -> Usual:
    """Ten sessions that run statements of a few milliseconds."""
    chance, found = random.Random(seed), Usual()
    for _ in range(looks):
        found.look([InFlight(NORMAL[number % 3], chance.uniform(0, 10)) for number in range(10)])
    return found


def normal(count: int, ran_ms: float = 5) -> list[InFlight]:
    return [InFlight(NORMAL[number % 3], ran_ms) for number in range(count)]


def rules(in_flight: list[InFlight], known: Usual, on_trial: tuple[str, ...] = ()) -> dict[str, str]:
    return {found.id: found.rule for found in accuse(in_flight, known, on_trial)}


@pytest.mark.parametrize("ran_ms", [0, 3, 30_000])
@pytest.mark.parametrize("sessions", [1, 20])
def test_what_is_hardly_ever_in_flight_is_suspected_and_the_normal_work_is_not(ran_ms: float, sessions: int) -> None:
    in_flight = [*normal(30), *[InFlight("death", ran_ms)] * sessions]
    assert rules(in_flight, usual()) == {"death": "suspect.unusual"}


def test_the_normal_work_is_not_suspected_if_there_is_more_of_it_or_all_of_it_is_slow() -> None:
    assert rules(normal(1000), usual()) == {}
    assert rules(normal(1000, ran_ms=60_000), usual()) == {}


def test_what_came_after_the_last_answer_only_piled_up() -> None:
    assert rules([*normal(30), InFlight("late", -200)], usual()) == {}


def test_a_usual_statement_that_runs_far_longer_than_usual_is_suspected() -> None:
    assert rules([*normal(30), InFlight("pay", 20_000)], usual()) == {"pay": "suspect.long"}


def test_a_usual_statement_that_crowds_out_the_others_is_suspected() -> None:
    assert rules([*normal(6), *[InFlight("pay", 5)] * 60], usual()) == {"pay": "suspect.share"}


def test_where_nothing_is_known_only_what_ran_for_long_is_suspected() -> None:
    assert rules([*normal(30), InFlight("death", 5000)], usual(LOOKS_MIN - 1)) == {"death": "suspect.unusual"}


def test_one_that_was_on_trial_comes_first_whatever_is_usual() -> None:
    in_flight = [*normal(30), *(InFlight(f"rare {number}", 9000) for number in range(20)), InFlight("pay", 0)]
    found = accuse(in_flight, usual(), ("pay",))
    assert (found[0].id, found[0].rule, len(found)) == ("pay", "suspect.again", 1 + SUSPECTS_MAX)


def test_no_statement_that_is_in_half_of_the_looks_is_unusual_for_long() -> None:
    """One that a client has retried for a minute of the last ten is."""
    known = usual(540)
    for _ in range(60):
        known.look([*normal(10), InFlight("death", 1000)])
    assert rules([*normal(10), InFlight("death", 1000)], known) == {"death": "suspect.unusual"}


flights = st.lists(
    st.builds(InFlight, st.sampled_from([*NORMAL, *(f"x{number}" for number in range(30))]), st.floats(-1e5, 1e6)),
    max_size=60,
)


@given(flights, st.sets(st.sampled_from(["pay", "x1", "x2"])), st.integers(0, 30))
def test_whatever_happens_there_are_few_and_each_was_in_flight(
    in_flight: list[InFlight], on_trial: set[str], looks: int
) -> None:
    found = accuse(in_flight, usual(looks), on_trial)
    assert len({one.id for one in found}) == len(found) <= SUSPECTS_MAX + len(on_trial)
    for one in found:
        assert one.rule in RULES
        assert one.sessions <= sum(flight.id == one.id for flight in in_flight)
        assert one.ran_ms >= 0


# records

THIS = Accusation("death", "suspect.unusual", 3, 100)


def of(epoch: int, standing: Standing, known: Suspect | None = None, by: Accusation = THIS) -> Suspect:
    return accused(known, "select", by, epoch, standing, 1000.0 * epoch)


def test_a_second_loss_while_it_is_on_trial_refuses_it_until_a_person_says_otherwise() -> None:
    again = of(3, Standing.REFUSED, of(1, Standing.ALONE), Accusation("death", "suspect.again", 1, 5))
    assert (again.standing, again.rule, again.epochs) == (Standing.REFUSED, "suspect.again", (1, 3))
    assert proven(again, 1e9).standing is Standing.REFUSED
    assert not is_over(again, 1e18, 1)
    assert of(4, Standing.ALONE, again).standing is Standing.REFUSED
    released = judged(again, Verdict.RELEASE, 1e9)
    assert not released.is_held
    assert of(3, Standing.REFUSED, released).standing is Standing.RELEASED  # a proxy that is late
    assert of(5, Standing.ALONE, released).standing is Standing.ALONE


def test_a_person_may_keep_one_and_one_that_is_proven_is_released_and_forgotten() -> None:
    suspect = of(1, Standing.ALONE)
    assert judged(suspect, Verdict.KEEP, 5).standing is Standing.REFUSED
    harmless = proven(suspect, 2000)
    assert (harmless.standing, harmless.rule) == (Standing.RELEASED, "suspect.harmless")
    assert is_over(harmless, 3000, 1000)
    assert not is_over(harmless, 2999, 1000)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([Standing.ALONE, Standing.REFUSED])), max_size=4))
def test_proxies_may_accuse_in_any_order(said: list[tuple[int, Standing]]) -> None:
    seen = set()
    for order in permutations(said):
        known: Suspect | None = None
        for epoch, standing in order:
            known = of(epoch, standing, known)
        seen.add(None if known is None else (known.epochs, known.standing))
    assert len(seen) == 1


# trials


def test_one_that_does_no_harm_alone_and_then_with_others_is_harmless() -> None:
    trial, now_ms, most = Trial(20, 0), 0.0, 0
    for _ in range(1000):
        now_ms += 100
        while trial.has_room:
            trial.enter()
        most = max(most, trial.inside)
        if sum(trial.ended(10, now_ms) for _ in range(trial.inside)):
            break
    assert most == 16  # 32 are more than 20
    assert now_ms >= 5 * STEP_MIN_MS


def test_one_that_is_slow_with_others_is_never_let_in_with_more() -> None:
    trial, now_ms = Trial(20, 0), 0.0
    for _ in range(1000):
        now_ms += 100
        while trial.has_room:
            trial.enter()
        took_ms = 10 if trial.inside == 1 else 500
        assert sum(trial.ended(took_ms, now_ms) for _ in range(trial.inside)) == 0
    assert trial.limit == 2


@given(st.lists(st.sampled_from(["enter", "end", "leave", "wait"]), max_size=300), st.integers(0, 100))
def test_never_are_more_inside_than_the_step_allows_and_a_step_at_most_doubles(happened: list[str], few: int) -> None:
    trial, now_ms, harmless = Trial(few, 0), 0.0, False
    for what in happened:
        before = trial.limit
        if what == "wait":
            now_ms += STEP_MIN_MS
        elif what == "enter" and trial.has_room:
            trial.enter()
        elif what == "end" and trial.inside:
            harmless |= trial.ended(10, now_ms)
        elif what == "leave" and trial.inside:
            trial.left()
        assert 0 <= trial.inside <= trial.limit
        assert trial.limit in (before, 2 * before)
        assert harmless == (trial.limit > max(FLOOR, few))
