"""What a client says to the proxy in SQL."""

from __future__ import annotations

import pytest

from holdfast.model.lsn import Lsn
from holdfast.wire import messages as m
from holdfast.wire.frames import FrameCutter
from holdfast.wire.own import LSN_SQL, ROUTE, WAIT_FOR, in_place_of, route_at_login, setting_of, token_of, with_own
from holdfast.wire.state import SessionState


@pytest.mark.parametrize("sql", ["show holdfast.lsn", "SHOW Holdfast.LSN;", "/* a */ show  holdfast.lsn"])
def test_the_position_is_asked_of_the_server(sql: str) -> None:
    assert in_place_of(sql.encode()) == LSN_SQL


@pytest.mark.parametrize(
    "sql",
    [
        "set holdfast.route = auto",
        "set session holdfast.route to 'primary'",
        "set holdfast.route to default",
        "set holdfast.wait_for = '7:0/3000148'",
        "set holdfast.wait_for = ''",
        "select 'show holdfast.lsn'",
        "show holdfast.lsn; select 1",
        "show holdfast.route",
        "select 1",
    ],
)
def test_what_is_right_goes_to_the_server_as_it_is(sql: str) -> None:
    assert in_place_of(sql.encode()) is None


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("set holdfast.route = 'fast'", 'invalid value for parameter "holdfast.route": "fast"'),
        ("set holdfast.wait_for = '0/3000148'", 'invalid value for parameter "holdfast.wait_for": "0/3000148"'),
        ("set local holdfast.route = auto", "holdfast.route cannot be set for a transaction alone"),
        ("set holdfast.other = 1", 'unrecognized configuration parameter "holdfast.other"'),
        ("set holdfast.route = 'it''s $holdfast$'", 'parameter "holdfast.route": "it\'\'s holdfast"'),
    ],
)
def test_what_is_wrong_is_refused_by_the_server(sql: str, says: str) -> None:
    instead = in_place_of(sql.encode())
    assert instead is not None
    assert says.encode() in instead
    assert instead.count(b"$holdfast$") == 2


def test_both_protocols_are_heard_and_the_rest_of_a_message_stays() -> None:
    parse = m.message(m.PARSE, b"name\0show holdfast.lsn\0\0\1\0\0\0\x17")
    plain = m.query("select 1")
    buffer, frames = with_own(*FrameCutter().feed(plain + m.query("SHOW holdfast.lsn") + parse + m.SYNC_MESSAGE))
    parts = [buffer[start:end] for _, start, end in frames]
    made = m.message(m.PARSE, b"name\0" + LSN_SQL + b"\0\0\1\0\0\0\x17")
    assert parts == [plain, m.query(LSN_SQL), made, m.SYNC_MESSAGE]


def test_the_sessions_settings_are_in_force_as_far_as_they_were_committed() -> None:
    state = SessionState()
    state.completed(b"set holdfast.route = auto", 0, b"SET")
    assert setting_of(state.own, ROUTE) == ""
    state.ended(m.IDLE, failed=False)
    assert setting_of(state.own, ROUTE) == "auto"
    assert state.settings == {}  # no other server needs to be told
    state.completed(b"set holdfast.wait_for = '7:0/10'", 0, b"SET")
    state.ended(m.IDLE, failed=True)
    assert setting_of(state.own, WAIT_FOR) == ""
    state.completed(b"select set_config('holdfast.wait_for', '7:0/10', false)", 0, b"SELECT 1")
    state.ended(m.IDLE, failed=False)
    assert setting_of(state.own, WAIT_FOR) == "7:0/10"
    state.completed(b"reset holdfast.route", 0, b"RESET")
    state.ended(m.IDLE, failed=False)
    assert setting_of(state.own, ROUTE) == ""
    state.completed(b"discard all", 0, b"DISCARD ALL")
    state.ended(m.IDLE, failed=False)
    assert state.own == {}


def test_tokens() -> None:
    assert token_of(" 7:0/3000148 ") == (7, Lsn.parse("0/3000148"))
    assert [token_of(text) for text in ("", "7", "0/1", "-1:0/1", "7:", "x:0/1")] == [None] * 6


@pytest.mark.parametrize(
    ("parameters", "route"),
    [
        ({}, ""),
        ({"options": "-c holdfast.route=auto"}, "auto"),
        ({"options": "-c statement_timeout=1000 -choldfast.route=auto"}, "auto"),
        ({"options": "--holdfast.route=auto -c x=a\\ b"}, "auto"),
        ({"options": "-c holdfast.route=auto -c holdfast.route=primary"}, "primary"),
        ({"options": "-c holdfast.route=sometimes"}, ""),
        ({"holdfast.route": "auto"}, "auto"),
    ],
)
def test_a_start_up_message_may_say_it(parameters: dict[str, str], route: str) -> None:
    assert route_at_login(parameters) == route
