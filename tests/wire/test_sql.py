from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.wire.effects import Effect, Pin, Verb, effects_of
from holdfast.wire.sql import Control, control_of, split_statements


@pytest.mark.parametrize(
    ("sql", "texts"),
    [
        ("", []),
        (" ; ;; -- nothing\n", []),
        ("select 1", ["select 1"]),
        ("select ';', \";\"; select $$;$$ ; select $a$;$$;$a$", 3),
        ("select E'\\';' ; select U&'\\;'", 2),
        ("select 1 /* ; /* ; */ ; */; select 2 -- ;", 2),
        ("select 1 -- ;\r; select 2", 2),
        ("create rule r as on insert to t do also (delete from a; delete from b); select 1", 2),
        ("create function f() returns int begin atomic select case when true then 1 end; select 2; end; select 3", 2),
        ("begin; commit", 2),
        ("select 'open ; string", 1),
        ("select $1; select a$b$c; select 1.5e3", 3),
        ("select 1) ; select 2", 2),
    ],
)
def test_split(sql: str, texts: list[str] | int) -> None:
    statements = split_statements(sql.encode())
    if isinstance(texts, int):
        assert len(statements) == texts
    else:
        assert [statement.text for statement in statements] == texts


@given(st.binary(max_size=80))
def test_any_bytes(sql: bytes) -> None:
    for statement in split_statements(sql):
        assert statement.text in sql.decode("latin-1")
        control_of(statement)
        effects_of(statement)


@given(st.text(st.sampled_from("abE$1'\"; /*-\n()\\"), max_size=30))
def test_tricky_text(sql: str) -> None:
    for statement in split_statements(sql.encode()):
        effects_of(statement)


@pytest.mark.parametrize(
    ("sql", "control"),
    [
        ("BEGIN", Control.BEGIN),
        ("start transaction read only", Control.BEGIN),
        ("/* x */ Commit and chain", Control.COMMIT),
        ("end", Control.COMMIT),
        ("prepare transaction 'x'", Control.COMMIT),
        ("prepare x as select 1", Control.HARMLESS),
        ("commit prepared 'x'", Control.OTHER),
        ("rollback prepared 'x'", Control.OTHER),
        ("rollback", Control.ROLLBACK),
        ("abort work", Control.ROLLBACK),
        ("rollback to savepoint x", Control.ROLLBACK_TO),
        ("rollback transaction to x", Control.ROLLBACK_TO),
        ("savepoint x", Control.SAVEPOINT),
        ("show all", Control.HARMLESS),
        ("select 1", Control.OTHER),
        ("insert into t values (1)", Control.OTHER),
        ('"begin"', Control.OTHER),
    ],
)
def test_control(sql: str, control: Control) -> None:
    (statement,) = split_statements(sql.encode())
    assert control_of(statement) is control


@pytest.mark.parametrize(
    ("sql", "effects"),
    [
        ("set search_path to a, b", [Effect(Verb.SET, "search_path", "set search_path to a, b")]),
        ("SET SESSION Work_Mem = '1MB'", [Effect(Verb.SET, "work_mem", "SET SESSION Work_Mem = '1MB'")]),
        ("set my.setting = 1", [Effect(Verb.SET, "my.setting", "set my.setting = 1")]),
        ("set x to default", [Effect(Verb.RESET, "x")]),
        ("set local x = 1", []),
        ("set transaction read only", []),
        ("set constraints all deferred", []),
        ("set time zone 'UTC'", [Effect(Verb.SET, "timezone", "set time zone 'UTC'")]),
        ("reset time zone", [Effect(Verb.RESET, "timezone")]),
        ("reset all", [Effect(Verb.RESET_ALL)]),
        ("set role r", [Effect(Verb.SET, "role", "set role r")]),
        ("listen x", [Effect(Verb.PIN, pin=Pin.LISTEN)]),
        ("unlisten *", [Effect(Verb.UNPIN, pin=Pin.LISTEN)]),
        ("unlisten x", []),
        ("create temp table t ()", [Effect(Verb.PIN, pin=Pin.TEMPORARY)]),
        ("create table pg_temp.t ()", [Effect(Verb.PIN, pin=Pin.TEMPORARY)]),
        ("create or replace temporary view v as select 1", [Effect(Verb.PIN, pin=Pin.TEMPORARY)]),
        ("create temp table t () on commit drop", []),
        ("create table temporary_things ()", []),
        ("select 1 into temp t", [Effect(Verb.PIN, pin=Pin.TEMPORARY)]),
        ("declare c cursor with hold for select 1", [Effect(Verb.PIN, pin=Pin.CURSOR)]),
        ("declare c cursor for select 1", []),
        ("close all", [Effect(Verb.UNPIN, pin=Pin.CURSOR)]),
        ("select pg_catalog.pg_try_advisory_lock(1)", [Effect(Verb.PIN, pin=Pin.ADVISORY_LOCK)]),
        ("select pg_advisory_xact_lock(1)", []),
        ("select 'pg_advisory_lock(1)'", []),
        ("select pg_advisory_unlock_all()", [Effect(Verb.UNPIN, pin=Pin.ADVISORY_LOCK)]),
        ("prepare p as select 1", [Effect(Verb.PREPARE, "p", "prepare p as select 1")]),
        ("deallocate prepare P", [Effect(Verb.DEALLOCATE, "p")]),
        ('deallocate "P"', [Effect(Verb.DEALLOCATE, "P")]),
        ("deallocate all", [Effect(Verb.DEALLOCATE_ALL)]),
        ("discard all", [Effect(Verb.DISCARD_ALL)]),
        ("select set_config('a.b', 'x', false)", [Effect(Verb.SET, "a.b", "select set_config(E'a.b', E'x', false)")]),
        ("select set_config('a.b', $2, 'f')", [Effect(Verb.SET, "a.b", "select set_config(E'a.b', E'v''2', false)")]),
        ("select set_config('a.b', 'x', true)", []),
        ("select set_config('a.b', lower('X'), false)", [Effect(Verb.PIN, pin=Pin.SETTING)]),
        ("select set_config('a.b', $9, false)", [Effect(Verb.PIN, pin=Pin.SETTING)]),
        ("select set_config('a.b', 'x')", [Effect(Verb.PIN, pin=Pin.SETTING)]),
        ("select set_config from t", []),
    ],
)
def test_effects(sql: str, effects: list[Effect]) -> None:
    (statement,) = split_statements(sql.encode())
    assert effects_of(statement, (b"v1", b"v'2")) == effects
