"""How a read says how old its answer may be, and what two of them must have in common."""

from __future__ import annotations

import pytest

from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.stale import question_of, tolerance_in


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"/* holdfast: stale=300 */ select 1", 300),
        (b"  /*HOLDFAST:stale = 5*/select 1", 5),
        (b"select 1 /* holdfast: stale=300 */", 300),
        (b"select 1 /* holdfast: stale=300 */ ; \n", 300),
        (b"select 1", None),
        (b"select '/* holdfast: stale=300 */'", None),
        (b"select 1 /* holdfast: stale=300 */ from t", None),
        (b"/* holdfast: stale=soon */ select 1", None),
        (b"/* stale=300 */ select 1", None),
    ],
)
def test_a_text_says_how_old_its_answer_may_be(text: bytes, seconds: int | None) -> None:
    assert tolerance_in(text) == seconds


def batch(
    name: bytes = b"", *, parse: bytes | None = b"\0\0", values: bytes = b"\0\0\0\0\0\0", portal: bytes = b""
) -> bytes:
    made = b"" if parse is None else m.message(m.PARSE, name + b"\0select $1\0" + parse)
    bound = m.message(m.BIND, portal + b"\0" + name + b"\0" + values)
    return made + bound + m.message(m.EXECUTE, portal + b"\0\0\0\0\0") + m.SYNC_MESSAGE


def question(data: bytes, texts: dict[bytes, bytes] | None = None) -> tuple[bytes, ...] | None:
    flight = Flight()
    assert flight.begin(data, texts or {})
    return question_of(flight)


def test_the_names_of_statements_make_no_difference() -> None:
    texts = {b"a": b"select $1", b"longer": b"select $1", b"other": b"select 2"}
    one, two, other = (question(batch(name, parse=None), texts) for name in texts)
    assert one == two
    assert one is not None
    assert one != other


def test_all_else_does() -> None:
    found = {
        question(m.query("select 1")),
        question(m.query("select 2")),
        question(batch()),
        question(batch(parse=b"\0\1\0\0\0\x17")),
        question(batch(values=b"\0\0\0\1\0\0\0\1x\0\0")),
        question(batch(b"a", parse=None), {b"a": b"select $1"}),
    }
    assert len(found) == 6
    assert None not in found


def test_what_leaves_something_behind_is_not_kept() -> None:
    assert question(batch(b"named")) is None
    assert question(batch(portal=b"p")) is None
    assert question(m.message(m.PARSE, b"\0select 1\0\0\0") + m.SYNC_MESSAGE) is None
