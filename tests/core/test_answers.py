"""The last good answers, within a bound of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.admission.answers import ENTRY_BYTES, LARGEST_PART, Answers, Found

ROOM = 10 * ENTRY_BYTES * LARGEST_PART


def test_an_answer_is_given_until_it_is_too_old() -> None:
    answers = Answers(ROOM)
    answers.keep("q", 1, b"one", 100.0)
    assert answers.find("q", 100.0, 5) == Found(b"one", 0.0)
    assert answers.find("q", 105.0, 5) == Found(b"one", 5.0)
    assert answers.find("q", 105.1, 5) is None
    assert answers.find("other", 100.0, 5) is None
    answers.keep("q", 1, b"two", 104.0)
    assert answers.find("q", 105.1, 5) == Found(b"two", 105.1 - 104.0)


def test_who_was_asked_for_least_lately_goes_first() -> None:
    size = ENTRY_BYTES + 10
    answers = Answers(LARGEST_PART * size)
    for number in range(LARGEST_PART):
        answers.keep(number, 0, bytes(10), 0.0)
    assert answers.find(0, 0.0, 1) is not None
    answers.keep("new", 0, bytes(10), 0.0)
    assert answers.find(1, 0.0, 1) is None
    assert answers.find(0, 0.0, 1) is not None


def test_one_that_is_too_large_is_not_kept_nor_is_its_former_one() -> None:
    answers = Answers(ROOM)
    answers.keep("q", 0, b"small", 0.0)
    answers.keep("q", 0, bytes(answers.largest_bytes), 0.0)
    assert answers.find("q", 0.0, 1) is None
    assert (len(answers), answers.size_bytes) == (0, 0)


def test_without_room_nothing_is_kept() -> None:
    answers = Answers(ROOM)
    answers.keep("q", 0, b"one", 0.0)
    answers.bound(0)
    assert (len(answers), answers.size_bytes) == (0, 0)
    answers.keep("q", 0, b"", 0.0)
    assert len(answers) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000), st.booleans()), max_size=60), st.integers(0, 40_000))
def test_the_bound_is_kept(steps: list[tuple[int, int, bool]], bytes_max: int) -> None:
    answers = Answers(bytes_max)
    for question, size, is_asked in steps:
        if is_asked:
            answers.find(question, 1.0, 5)
        else:
            answers.keep(question, 8, bytes(size), 1.0)
        assert 0 <= answers.size_bytes <= bytes_max
    for question in range(10):
        answers.forget(question)
    assert (len(answers), answers.size_bytes) == (0, 0)
