"""Parameters are compared by what they are now, whatever was seen before."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast.wire.parameters import Parameters

known = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"))
changes = st.lists(st.tuples(st.booleans(), st.sampled_from(("set", "update", "or")), known), max_size=8)


@given(known, known, changes)
def test_they_are_equal_if_they_are(one: dict[str, str], other: dict[str, str], changed: Any) -> None:
    left, right = Parameters(one), Parameters(other)
    assert left.are_those(right) is (one == other)
    for is_left, how, news in changed:
        target = left if is_left else right
        if how == "set":
            for name, value in news.items():
                target[name] = value
        elif how == "update":
            target.update(news)
        else:
            target |= news
        assert left.are_those(right) is (dict(left) == dict(right))
        assert (left.stamp is right.stamp) is (dict(left) == dict(right))


def test_a_copy_is_not_what_it_was_copied_from() -> None:
    one = Parameters({"a": "x"})
    other = Parameters(one)
    assert one.are_those(other)
    other["a"] = "y"
    assert not one.are_those(other)
