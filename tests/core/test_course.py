"""The course of an incident: from counters that were looked at again and again to steps that can be drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from holdfast.core.course import LEAD_MS, STEPS_MAX, Course, Look, course_of, together


def looks(*rows: tuple[int, int, int, int]) -> list[Look]:
    return [Look(*row) for row in rows]


def test_a_quiet_time_has_no_course() -> None:
    assert course_of([]) is None
    assert course_of(looks((0, 5, 0, 0))) is None
    assert course_of(looks((0, 5, 2, 0), (100, 9, 2, 0))) is None


def test_it_begins_shortly_before_the_first_trouble() -> None:
    quiet = [Look(100 * n, n * 3, 0, 0) for n in range(100)]
    course = course_of([*quiet, *looks((10_000, 297, 0, 4), (10_100, 297, 1, 5), (10_200, 305, 1, 0))])
    assert course is not None
    assert course.since_ms == 10_000 - LEAD_MS
    assert course.step_ms == 100
    assert course.done[:19] == (3,) * 19
    assert course.done[19:] == (0, 0, 8, 0)
    assert course.failed[19:] == (0, 1, 0, 0)
    assert course.held[19:] == (4, 5, 5, 0)


def test_a_long_time_has_longer_steps_and_nothing_is_lost() -> None:
    course = course_of([Look(100 * n, 2 * n, n, 1) for n in range(1201)])
    assert course is not None
    assert len(course.done) <= STEPS_MAX
    assert (sum(course.done), sum(course.failed), max(course.held)) == (2400, 1200, 1)
    assert course.step_ms == 1000


ONE = Course(1000.0, 100, (5, 0, 0, 7), (0, 1, 0, 0), (0, 3, 4, 0))


def test_courses_of_several_proxies_are_added_up() -> None:
    later = Course(1150.0, 100, (1, 1), (0, 2), (9, 0))
    assert together([]) is None
    assert together([ONE]) == ONE
    assert together([ONE, later]) == Course(1000.0, 100, (5, 1, 1, 7), (0, 1, 2, 0), (0, 12, 4, 0))


def test_two_troubles_far_apart_are_one_course_within_the_bound() -> None:
    far = Course(1_000_000.0, 100, (1,), (1,), (1,))
    both = together([ONE, far])
    assert both is not None
    assert len(both.done) <= STEPS_MAX
    assert (sum(both.done), sum(both.failed), max(both.held)) == (13, 2, 4)


def test_it_is_kept_as_it_is() -> None:
    assert Course.from_detail(ONE.to_detail()) == ONE


@pytest.mark.parametrize(
    "detail",
    [
        None, [], {}, {"since_ms": 1}, {**ONE.to_detail(), "step_ms": 0}, {**ONE.to_detail(), "done": [1]},
        {**ONE.to_detail(), "since_ms": "now"},
        {"since_ms": 1, "step_ms": 1, **dict.fromkeys(("done", "failed", "held"), [0] * (STEPS_MAX + 1))},
    ],
)  # fmt: skip
def test_what_is_no_course_is_none(detail: JsonValue) -> None:
    assert Course.from_detail(detail) is None


counts = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 9), st.integers(0, 3), st.integers(0, 5)), max_size=300)


@given(st.lists(counts, max_size=4))
def test_nothing_is_lost_on_the_way(proxies: list[list[tuple[int, int, int, int]]]) -> None:
    courses, expected = [], [0, 0, 0]
    for steps in proxies:
        look = Look(0, 0, 0, 0)
        made = [look]
        for passed, done, failed, held in steps:
            look = Look(look.at_ms + passed, look.done + done, look.failed + failed, held)
            made.append(look)
        course = course_of(made)
        if course is not None:
            courses.append(course)
            expected[0] += sum(course.done)
            expected[1] += sum(course.failed)
            expected[2] += max(course.held)
            assert sum(course.failed) == look.failed
            assert max(course.held) == max(one.held for one in made)
    whole = together(courses)
    if whole is None:
        assert not courses
        return
    assert (sum(whole.done), sum(whole.failed)) == (expected[0], expected[1])
    assert max((max(c.held) for c in courses), default=0) <= max(whole.held) <= expected[2]
    assert len(whole.done) <= STEPS_MAX
