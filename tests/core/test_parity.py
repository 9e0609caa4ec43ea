"""Judging a chunk of a table from three looks at it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.parity import Difference, Look, Looks, Version, compare, look_of, precedes, range_of

OLDEST_RUNNING = 100
ROW = Version(block=0, offset=1, xmin=50, xmax=0, digest=7)
OTHER = Version(block=0, offset=2, xmin=60, xmax=0, digest=8, key="(2)")
BOTH = look_of([ROW, OTHER])
NONE: Look = {}


def test_nothing_differs() -> None:
    assert not compare(BOTH, OLDEST_RUNNING, BOTH, BOTH)


def test_what_the_primary_shows_both_times_must_be_there() -> None:
    found = compare(BOTH, OLDEST_RUNNING, look_of([ROW]), BOTH)
    assert (list(found.missing.values()), found.extra, found.different) == ([OTHER], {}, {})
    assert str(found.all()[0]) == "(2)"
    assert str(ROW) == "ctid (0,1)"


def test_what_was_deleted_meanwhile_may_be_gone() -> None:
    assert not compare(BOTH, OLDEST_RUNNING, look_of([ROW]), look_of([ROW]))


def test_what_is_being_deleted_is_undecided() -> None:
    """Its deleter waits for the standbys: they have replayed the commit that the primary does not show yet."""
    leaving = look_of([ROW, replace(OTHER, xmax=OLDEST_RUNNING + 5)])
    found = compare(leaving, OLDEST_RUNNING, look_of([ROW]), leaving)
    assert not found
    assert found.undecided == 1


def test_a_deletion_that_came_to_nothing_long_ago_excuses_nothing() -> None:
    locked = look_of([ROW, replace(OTHER, xmax=OLDEST_RUNNING - 5)])
    assert compare(locked, OLDEST_RUNNING, look_of([ROW]), locked).missing


def test_what_only_the_standby_shows_is_extra_if_it_is_old() -> None:
    assert compare(look_of([ROW]), OLDEST_RUNNING, BOTH, look_of([ROW])).extra
    new = replace(OTHER, xmin=OLDEST_RUNNING)
    assert not compare(look_of([ROW]), OLDEST_RUNNING, look_of([ROW, new]), look_of([ROW]))


def test_other_values_in_the_same_version() -> None:
    forged = look_of([ROW, replace(OTHER, digest=9)])
    assert compare(BOTH, OLDEST_RUNNING, forged, BOTH).different


@pytest.mark.parametrize(
    ("keys", "first", "last"),
    [
        (["(10)", "(9)", "(-3)", "(700)"], "(-3)", "(700)"),
        (["(b,2)", "(a,10)", "(a,9)"], "(a,9)", "(b,2)"),
        (["(2,x)", "(10,a)"], "(2,x)", "(10,a)"),
        (["(2026-11-30)", "(2026-2-1)"], "(2026-11-30)", "(2026-2-1)"),
        (["(0f-10)", "(0a-9)"], "(0a-9)", "(0f-10)"),
        (["(1)"], "(1)", "(1)"),
        (["(1)", ""], "", ""),
        ([], "", ""),
    ],
)
def test_the_range_of_keys(keys: list[str], first: str, last: str) -> None:
    assert range_of(keys) == (first, last)


@given(st.lists(st.text(alphabet='(),-. a1290"', max_size=12)))
def test_any_keys_have_an_order(keys: list[str]) -> None:
    first, last = range_of(keys)
    assert {first, last} <= {"", *keys}


def test_what_is_found_once_may_not_be_found_again() -> None:
    once = compare(BOTH, OLDEST_RUNNING, NONE, BOTH)
    again = compare(BOTH, OLDEST_RUNNING, look_of([ROW]), BOTH)
    assert once.also_in(again).all() == [OTHER]
    assert not once.also_in(compare(BOTH, OLDEST_RUNNING, BOTH, BOTH))


def test_what_differs_must_do_so_twice_in_a_row() -> None:
    nothing, missing, busy = Difference(), compare(BOTH, OLDEST_RUNNING, NONE, BOTH), Difference(undecided=1)
    for seen, told in (
        ([nothing], nothing),
        ([missing, missing], missing),
        ([missing, nothing], nothing),
        ([busy, missing, missing], missing),
        ([missing, busy, missing, missing], missing),
        ([busy, busy, busy, busy], busy),
        ([busy, missing, busy, missing], nothing),
    ):
        looks = Looks(4)
        judged = [looks.judge(difference) for difference in seen]
        assert judged == [None] * (len(seen) - 1) + [told]


def test_transaction_ids_wrap_around() -> None:
    assert precedes(0xFFFFFFF0, 5)
    assert not precedes(5, 0xFFFFFFF0)
    assert precedes(2, 0x90000000), "frozen before anything else"
    assert not precedes(7, 7)


@given(st.data())
def test_replication_alone_is_never_a_difference(data: st.DataObject) -> None:
    """Rows come and go in the primary; the standby shows some state between the two looks, at times ahead of what the
    primary shows, since commits that wait for it are shown there first."""
    numbers = range(1, 9)
    born = {n: data.draw(st.integers(0, 3)) for n in numbers}  # 0: long ago; else in that step
    died = {n: data.draw(st.integers(born[n] + 1, 5)) for n in numbers}  # 5: never
    waits = data.draw(st.sampled_from(numbers))

    def at(step: int, ahead: bool = False) -> Look:
        shown = []
        for n in numbers:
            dies = died[n] - (ahead and n == waits)
            begins = born[n] - (ahead and n == waits and born[n] > 0)
            if begins <= step < dies:
                doomed = OLDEST_RUNNING + 10 * died[n] if n == waits and step >= dies - 1 and died[n] < 5 else 0
                shown.append(Version(0, n, OLDEST_RUNNING + born[n] if born[n] else 50, doomed, n))
        return look_of(shown)

    assert not compare(at(0), OLDEST_RUNNING, at(data.draw(st.sampled_from((1, 2))), ahead=True), at(2))
