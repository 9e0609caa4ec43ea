from __future__ import annotations

import pytest

from holdfast.wire import messages as m
from holdfast.wire.effects import Pin
from holdfast.wire.state import SessionState


def run(state: SessionState, *statements: str, status: int = m.IDLE, failed: bool = False) -> None:
    """Each statement completes in a Query of its own; the last ends with ``status``."""
    for sql in statements:
        state.completed(sql.encode(), 0, sql.split()[0].upper().encode())
    state.ended(status, failed)


def test_settings_survive_only_a_commit() -> None:
    state = SessionState()
    run(state, "set a = 1")
    run(state, "set b = 1", "commit")
    run(state, "set c = 1", "rollback")
    run(state, "set d = 1", failed=True)
    run(state, "set e = 1", status=m.IN_TRANSACTION)
    assert list(state.settings) == ["a", "b"]
    state.lost()
    run(state, "commit")
    assert list(state.settings) == ["a", "b"]


def test_commit_of_a_failed_transaction_keeps_nothing() -> None:
    state = SessionState()
    run(state, "set a = 1", status=m.IN_FAILED_TRANSACTION, failed=True)
    state.completed(b"commit", 0, b"ROLLBACK")
    state.ended(m.IDLE, False)
    assert state.settings == {}


def test_savepoints() -> None:
    state = SessionState()
    run(state, "set a = 1", "savepoint s", "set b = 1", "savepoint t", "set c = 1", status=m.IN_TRANSACTION)
    run(state, "rollback to s", status=m.IN_TRANSACTION)
    run(state, "set d = 1", "commit")
    assert list(state.settings) == ["a", "d"]


def test_the_last_word_on_a_setting_counts_and_comes_last() -> None:
    state = SessionState()
    run(state, "set a = 1")
    run(state, "set role x")
    run(state, "set a = 2")
    assert list(state.settings.values()) == ["set role x", "set a = 2"]
    run(state, "reset all")
    assert list(state.settings) == ["role"]
    run(state, "reset role")
    assert state.settings == {}


def test_statement_by_its_place() -> None:
    state = SessionState()
    sql = b"select 1; set a = 1; ; set b = 1"
    state.completed(sql, 1, b"SET")
    state.ended(m.IDLE, False)
    assert list(state.settings) == ["a"]


def test_pins_and_discard() -> None:
    state = SessionState()
    run(state, "listen x", "create temp table t ()", status=m.IN_TRANSACTION)
    run(state, "rollback")
    assert state.pins == set()
    run(state, "select pg_advisory_lock(1)", failed=True)
    assert state.pins == {Pin.ADVISORY_LOCK}  # a rollback does not release it
    run(state, "listen x")
    run(state, "discard all")
    assert state.pins == set()


def test_prepared_statements() -> None:
    state = SessionState()
    state.parsed(b"a", m.message(m.PARSE, b"a\0select 1\0\0\0"))
    state.parsed(b"b", m.message(m.PARSE, b"b\0select 2\0\0\0"))
    run(state, "prepare c as select 3")
    run(state, "deallocate a")
    state.closed(b"b")
    (step,) = state.replay(m.IDLE)
    assert step.name == b"c"
    assert step.message == m.query("prepare c as select 3")
    run(state, "deallocate all")
    assert state.replay(m.IDLE) == []


@pytest.mark.parametrize("status", [m.IN_TRANSACTION, m.IN_FAILED_TRANSACTION])
def test_a_failed_transaction_is_replayed_as_one(status: int) -> None:
    begin, spoil = SessionState().replay(status)
    assert begin.message == m.query("begin")
    assert spoil.may_fail


def test_bytes_survive() -> None:
    state = SessionState()
    sql = "set application_name = 'Zoë ☂'".encode()
    state.completed(sql, 0, b"SET")
    state.ended(m.IDLE, False)
    assert state.replay(m.IDLE)[0].message == m.query(sql)


def test_savepoints_of_one_name() -> None:
    """RELEASE takes the inner one away, so that ROLLBACK TO means the outer one."""
    state = SessionState()
    run(state, "savepoint s", "set a = 1", "savepoint s", "set b = 1", status=m.IN_TRANSACTION)
    run(state, "release savepoint s", "rollback to s", "set c = 1", "commit")
    assert list(state.settings) == ["c"]
    run(state, "savepoint s", "set d = 1", "savepoint t", "set e = 1", "release s", "commit")
    assert list(state.settings) == ["c", "d", "e"]


@pytest.mark.parametrize(
    ("prepared", "pins"),
    [
        ("prepare p as select pg_advisory_lock(1)", {Pin.ADVISORY_LOCK}),
        ("prepare p (int) as select pg_try_advisory_lock($1)", {Pin.ADVISORY_LOCK}),
        ("prepare p (text) as select set_config('a.b', $1, false)", {Pin.SETTING}),
        ("prepare p as select 1", set()),
        ("prepare p as select pg_advisory_xact_lock(1)", set()),
    ],
)
def test_what_a_prepared_statement_does_counts_when_it_is_executed(prepared: str, pins: set[Pin]) -> None:
    state = SessionState()
    run(state, prepared)
    assert state.pins == set()
    state.completed(b"execute p (1)", 0, b"SELECT 1")
    state.ended(m.IDLE, False)
    run(state, "deallocate p")
    assert state.pins == pins


def test_a_statement_of_the_protocol_executed_by_sql() -> None:
    state = SessionState()
    state.parsed(b"p", m.message(m.PARSE, b"p\0select pg_advisory_lock(1)\0\0\0"))
    state.completed(b"/* again */ EXECUTE p", 0, b"SELECT 1")
    assert state.pins == {Pin.ADVISORY_LOCK}


def test_a_prepared_statement_that_failed_may_have_taken_its_lock_before() -> None:
    state = SessionState()
    run(state, "prepare p as select pg_advisory_lock(1), 1 / 0")
    state.failed(b"execute p")
    assert state.pins == {Pin.ADVISORY_LOCK}
    state.pins.clear()
    state.failed(b"execute q")
    assert state.pins == set()


@pytest.mark.parametrize(
    ("sql", "pins"),
    [
        ("select 5 as balance into pg_temp.ledger", {Pin.TEMPORARY}),
        ("select 5 as balance into local temporary table ledger", {Pin.TEMPORARY}),
        ('create table "pg_temp".ledger as select 5', {Pin.TEMPORARY}),
        ("do $$ begin create temp table ledger (a int); end $$", {Pin.TEMPORARY}),
        ("do 'begin perform pg_advisory_lock(1); end'", {Pin.ADVISORY_LOCK}),
        ("do $$ begin perform set_config('a.b', '1', false); end $$", {Pin.SETTING}),
        ("do $$ begin perform pg_advisory_xact_lock(1); update attempts set template = 1; end $$", set()),
        ("select attempts, template into tempting from t", set()),
    ],
)
def test_what_is_temporary_or_done_in_a_block(sql: str, pins: set[Pin]) -> None:
    state = SessionState()
    run(state, sql)
    assert state.pins == pins


def test_a_comment_that_ends_at_a_carriage_return_hides_no_statement_from_what_is_replayed() -> None:
    state = SessionState()
    run(state, "set a.b = '1' -- x\r; insert into audit values (1)")
    assert list(state.settings.values()) == ["set a.b = '1' -- x\r"]


@pytest.mark.parametrize("sql", ["explain analyze execute p", "create table t as execute p (1)", "EXECUTE p"])
def test_execute_counts_wherever_it_stands(sql: str) -> None:
    state = SessionState()
    run(state, "prepare p as select pg_advisory_lock(1)", sql)
    assert state.pins == {Pin.ADVISORY_LOCK}


def test_a_column_of_that_name_executes_nothing() -> None:
    state = SessionState()
    run(state, "prepare p as select pg_advisory_lock(1)", "select execute, executed_at from p")
    assert state.pins == set()
