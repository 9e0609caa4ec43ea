"""Which batches are common ones."""

from __future__ import annotations

import pytest

from holdfast.wire import messages as m
from holdfast.wire.flight import Flight, is_plain

PARSE = m.message(m.PARSE, b"\0select 1\0\0\0")
BIND = m.message(m.BIND, b"\0\0\0\0\0\0\0\0")
DESCRIBE = m.message(m.DESCRIBE, b"P\0")
EXECUTE = m.message(m.EXECUTE, b"\0\0\0\0\0")


def test_a_batch_that_binds_nothing_is_none() -> None:
    """What portal it is about is known to the full way only."""
    flight = Flight()
    assert flight.begin(PARSE + BIND + DESCRIBE + EXECUTE + m.SYNC_MESSAGE, {})
    flight.forget()
    for data in (DESCRIBE, EXECUTE, PARSE + DESCRIBE):
        assert not flight.begin(data + m.SYNC_MESSAGE, {b"": b"select 1"})
    assert flight.begin(PARSE + m.SYNC_MESSAGE, {})
    assert (flight.portal, flight.bind_at, flight.bind_end) == (b"", 0, 0)


@pytest.mark.parametrize(
    "text",
    [b"select attempts, template from t", b"select executed_at from t", b"update contempt set a = 1", b"select temps"],
)
def test_words_that_only_have_such_a_word_in_them_are_plain(text: bytes) -> None:
    assert is_plain(text)


_TEMPORARY = [b"create TEMP table t", b"select 1 into pg_temp_3.t", b"DROP table pg_temp.t", b"create temporary view v"]


@pytest.mark.parametrize("text", _TEMPORARY)
def test_what_is_about_temporary_things_is_not(text: bytes) -> None:
    assert not is_plain(text)
