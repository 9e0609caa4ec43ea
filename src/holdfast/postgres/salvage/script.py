"""The script that brings lost rows back: for a person to read, change and run. Nothing here runs it. Pure.

Values are written as strings and read by the types' input functions, under the settings in the script's head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from holdfast.model.lost import UNDECIDED, LostLog, LostTransaction
from holdfast.model.rows import Column, Row, RowChange, Table

LONG_VALUE = 200
"""Longer values are compared by their MD5: nobody reads them, and they stand in the statement once already."""

_HEAD = """\
-- What {node} had committed and nobody else had, when epoch {epoch} replaced it: {count} transactions beyond {fork}.
-- Holdfast runs none of this. Read it, take out what must not come back, and run it on the primary with psql.
-- A row that was inserted meanwhile under the same key stays as it is (INSERT 0 0); one that was changed or removed
-- meanwhile is left alone (UPDATE 0, DELETE 0): look at those yourself.
-- Triggers fire, foreign keys are checked. Sequences are not moved.
-- To keep triggers from firing, a superuser may say: SET session_replication_role = replica;
"""
SETTINGS = (
    "SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET lc_monetary = 'C';\n"
    "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; SET search_path = '';\n"
)


def head(lost: LostLog) -> str:
    """The beginning of the script."""
    return _HEAD.format(node=lost.member.node, epoch=lost.epoch, fork=lost.fork_lsn, count=len(lost.of_clients))


def in_database(database: str) -> str:
    """What follows belongs to another database."""
    return f"\n\\connect {identifier(database)}\n{SETTINGS}"


def transaction(
    lost: LostTransaction, changes: Iterable[RowChange], notes: Iterable[str], *, has_ddl: bool = False
) -> Iterator[str]:
    """The lines of one transaction.

    It ends with ROLLBACK, for a person to change, if nobody had decided to commit it, if the new primary may still hold
    it prepared, or if its DDL is not in it.
    """
    prepared = lost.prepared_as
    state = "committed" if prepared is None else f"prepared as {literal(prepared)}, not committed,"
    yield f"\n-- transaction {lost.xid}, {_one_line(state)} {lost.committed_at}"
    yield from (f"-- {_one_line(note)}" for note in notes)
    yield "BEGIN;"
    for change in changes:
        yield from _statement(change)
    if prepared is not None:
        yield f"ROLLBACK; {UNDECIDED}"
    elif lost.open_as is not None:
        yield "-- It was prepared before. If it still is (pg_prepared_xacts on the primary), run this instead:"
        yield f"-- COMMIT PREPARED {_one_line(literal(lost.open_as))};"
        yield "ROLLBACK; -- COMMIT if it is not there and was not committed"
    else:
        yield "ROLLBACK; -- COMMIT when you have done what it did to the catalog" if has_ddl else "COMMIT;"


def _statement(change: RowChange) -> Iterator[str]:
    table, before, after = change.table, change.before, change.after
    if table.partition is not None:
        yield f"-- partition {_one_line(table.partition)}"
    if change.missing == "after" or (before is None and after is None):
        yield f"-- {change.kind} in {_one_line(table.full_name)}: the row {change.missing} is not known any more"
    elif after is None and before is not None:
        yield f"DELETE FROM {_target(table)} WHERE {_where(table, before)};"
    elif after is not None and change.missing is None and before is None:
        yield insert(table, after)
    elif after is not None and before is not None:
        changed = [c for c in _written(table) if c.name in after and before.get(c.name) != after[c.name]]
        if not changed:
            yield f"-- a row of {_one_line(table.full_name)} was updated to what it was"
            return
        values = ", ".join(f"{identifier(c.name)} = {literal(after[c.name])}" for c in changed)
        yield f"UPDATE {_target(table)} SET {values} WHERE {_where(table, before)};"
    elif after is not None:
        yield from _update_of_unknown(table, after)


def _update_of_unknown(table: Table, after: Row) -> Iterator[str]:
    if not table.key:
        yield "-- an updated row; which one it was is not known any more, for the table has no key. It became:"
        yield from (f"-- {line}" for line in insert(table, after).splitlines())
        return
    yield "-- what this row was before is not known any more: compare before you run it"
    values = ", ".join(f"{identifier(c.name)} = {literal(after[c.name])}" for c in _written(table))
    where = " AND ".join(f"{identifier(name)} = {literal(after[name])}" for name in table.key)
    yield f"UPDATE {_target(table)} SET {values} WHERE {where};"


def insert(table: Table, row: Row) -> str:
    """One INSERT."""
    columns = _written(table)
    if not columns:
        return f"INSERT INTO {_qualified(table)} DEFAULT VALUES;"
    names = ", ".join(identifier(c.name) for c in columns)
    values = ", ".join(literal(row[c.name]) for c in columns)
    overriding = " OVERRIDING SYSTEM VALUE" if any(c.is_always_identity for c in columns) else ""
    return f"INSERT INTO {_qualified(table)} ({names}){overriding} VALUES ({values}) ON CONFLICT DO NOTHING;"


def _where(table: Table, row: Row) -> str:
    """The whole row as it was; of a table without a key one such row, for there may be more of them."""
    columns = sorted((c for c in _written(table) if c.name in row), key=lambda c: c.name not in table.key)
    conditions = " AND ".join(_is(c, row[c.name], c.name in table.key) for c in columns)
    if table.key or not conditions:
        return conditions or "true"
    found = f"SELECT tableoid, ctid FROM {_target(table)} WHERE {conditions} LIMIT 1"
    return f"(tableoid, ctid) IN ({found})"


def _is(column: Column, value: str | None, is_key: bool) -> str:
    name = identifier(column.name)
    if value is None:
        return f"{name} IS NULL"
    if not is_key and len(value) > LONG_VALUE and not column.type.startswith(("character(", "bpchar")):
        digest = hashlib.md5(value.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
        return f"pg_catalog.md5(pg_catalog.convert_to({name}::text, 'UTF8')) = '{digest}'"
    if not column.is_comparable:
        return f"{name}::text = {literal(value)}"
    return f"{name} = {literal(value)}"


def _written(table: Table) -> list[Column]:
    return [column for column in table.columns if not column.is_generated]


def _target(table: Table) -> str:
    return _qualified(table) if table.partition is not None else f"ONLY {_qualified(table)}"


def _qualified(table: Table) -> str:
    return f"{identifier(table.schema)}.{identifier(table.name)}"


def identifier(name: str) -> str:
    """A name, quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | None) -> str:
    """A string that any type's input function reads, or NULL."""
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def _one_line(text: str) -> str:
    """For a comment: a line break would end it, and let what follows run."""
    return "".join(character if character.isprintable() else "?" for character in text)
