"""What a client gets of a standby's answer: all of it, or nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.held import Held
from holdfast.wire.readback import HELD_BYTES_MAX, Readback, Sent, are_alike, note, read_batch
from holdfast.wire.state import SessionState

READY = m.ready_for_query(m.IDLE)
ROW = m.message(m.DATA_ROW, b"\0\1\0\0\0\1x")
DONE = m.message(m.COMMAND_COMPLETE, b"SELECT 1\0")
ANSWER = m.message(m.ROW_DESCRIPTION, b"\0\0") + ROW + DONE + READY


def error(sqlstate: str) -> bytes:
    return m.error(sqlstate, "no").encode()


def taken(readback: Readback, data: bytes, cuts: list[int]) -> list[bytes]:
    """What is given out, piece by piece."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [readback.take(data[begin:end]) for begin, end in itertools.pairwise(edges)]


def flight_of(data: bytes, texts: dict[bytes, bytes] | None = None) -> Flight:
    flight = Flight()
    assert flight.begin(data, texts or {})
    return flight


@given(st.lists(st.integers(0, 10_000)), st.integers(0, 3), st.integers(0, 2))
def test_the_client_gets_its_answer_at_its_end_and_no_more(cuts: list[int], readies: int, completions: int) -> None:
    before = (m.message(m.COMMAND_COMPLETE, b"SET\0") + m.parameter_status("DateStyle", "German") + READY) * readies
    before += m.message(m.CLOSE_COMPLETE) * (completions > 1) + m.message(m.PARSE_COMPLETE) * (completions > 0)
    readback = Readback(Sent(b"", readies, completions))
    given_out = taken(readback, before + ANSWER, cuts)
    assert b"".join(given_out) == ANSWER
    assert not any(given_out[:-1])
    assert readback.is_over
    assert (readback.has_failed, readback.is_unfit) == (False, False)
    assert readback.parameters == ({"DateStyle": "German"} if readies else {})


@given(st.lists(st.integers(0, 10_000)), st.sampled_from(["42P01", "25006", "40001"]))
def test_of_an_error_the_client_gets_nothing_and_the_connection_is_good(cuts: list[int], sqlstate: str) -> None:
    readback = Readback(Sent(b"", 0, 0))
    assert not any(taken(readback, ROW + error(sqlstate) + READY, cuts))
    assert (readback.has_failed, readback.is_over, readback.is_unfit) == (True, True, False)
    assert readback.sqlstate == sqlstate


def test_a_cancelled_statement_is_the_clients() -> None:
    readback = Readback(Sent(b"", 0, 0))
    said = error("57014") + READY
    assert readback.take(said) == said
    assert not readback.has_failed


def test_a_setting_that_the_standby_refuses_makes_the_connection_unfit() -> None:
    readback = Readback(Sent(b"", 1, 0))
    assert readback.take(error("22023") + READY + ANSWER) == b""
    assert (readback.refusal, readback.sqlstate) == ("22023", "")
    assert (readback.has_failed, readback.is_unfit) == (True, True)


@pytest.mark.parametrize("said", [m.message(m.COPY_OUT, b"\0\0\0"), m.parameter_status("a", "b"), b"A\0\0\0\x06\0\0"])
def test_what_no_read_says_is_not_the_clients(said: bytes) -> None:
    readback = Readback(Sent(b"", 0, 0))
    assert readback.take(ROW + said) == b""
    assert (readback.has_failed, readback.is_unfit) == (True, True)


def test_a_large_answer_is_passed_on_as_it_comes_and_so_is_its_error() -> None:
    readback = Readback(Sent(b"", 0, 0))
    large = m.message(m.DATA_ROW, bytes(HELD_BYTES_MAX)) * 2
    assert readback.take(large) == large
    readback.is_given = True
    assert readback.take(ROW) == ROW
    assert readback.take(error("22012") + READY) == error("22012") + READY
    assert not readback.has_failed


def test_settings_and_statements_are_told_in_front_of_the_read() -> None:
    state, held = SessionState(), Held(application_name="a")
    parse = m.message(m.PARSE, b"s1\0select $1::int\0\0\0")
    state.parsed(b"s1", parse)
    state.completed(b"set search_path = own", 0, b"SET")
    state.ended(m.IDLE, failed=False)
    bind = m.message(m.BIND, b"\0s1\0\0\0\0\1\0\0\0\1" + b"1\0\0")
    batch = bind + m.message(m.EXECUTE, bytes(5)) + m.SYNC_MESSAGE
    flight = flight_of(batch, {b"s1": b"select $1::int"})
    first = read_batch(flight, state, held, "a")
    assert first is not None
    assert first.data.startswith(m.query("SET application_name = 'a'") + m.query("set search_path = own"))
    assert (first.readies, first.completions) == (2, 2)
    assert first.makes is not None
    assert first.data.count(first.makes) == 3  # it is closed, made and bound
    note(held, state, "a", first.makes)
    again = read_batch(flight, state, held, "a")
    assert again is not None
    assert (again.readies, again.completions) == (0, 0)
    assert again.data == batch.replace(bind, m.message(m.BIND, b"\0" + first.makes + bind[5 + 3 :]))


def test_what_makes_a_statement_for_later_is_not_for_a_standby() -> None:
    state = SessionState()
    named = m.message(m.PARSE, b"s1\0select 1\0\0\0") + m.message(m.BIND, b"\0s1\0" + bytes(6))
    named += m.message(m.EXECUTE, bytes(5)) + m.SYNC_MESSAGE
    assert read_batch(flight_of(named), state, Held(), "") is None
    unknown = m.message(m.BIND, b"\0s2\0" + bytes(6)) + m.message(m.EXECUTE, bytes(5)) + m.SYNC_MESSAGE
    assert read_batch(flight_of(unknown, {b"s2": b"select 1"}), state, Held(), "") is None


def test_parameters_that_decide_how_an_answer_is_read_must_be_the_same() -> None:
    told = {"DateStyle": "ISO, MDY", "in_hot_standby": "off", "application_name": "a"}
    assert are_alike({**told, "in_hot_standby": "on", "application_name": "b"}, told)
    assert not are_alike({**told, "DateStyle": "German"}, told)
    assert not are_alike({}, told)
