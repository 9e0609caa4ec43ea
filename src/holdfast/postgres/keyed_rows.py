"""One table of a server, asked for the rows of some keys, whose values come as those of a salvage do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from holdfast.model.errors import ConfigurationError, PostgresError
from holdfast.model.rows import Row
from holdfast.postgres.salvage.copy import SESSION

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
DATABASES = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn"
_TABLE = """
SELECT c.oid::bigint, n.nspname, c.relname
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname || '.' || c.relname = %s
"""
_COLUMNS = """
SELECT a.attname, pg_catalog.format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, -1)
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""
_UNIQUE = """
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_index i
   WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
     AND NOT EXISTS (
       SELECT FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE k.place <= i.indnkeyatts AND a.attname <> ALL (%s::text[])))
"""


@dataclass(slots=True)
class KeyedTable:
    """A table and the session that reads it. ``types`` holds its columns with their types, of domains the base type."""

    schema: str
    name: str
    types: dict[str, str]
    _oid: int
    _session: Connection

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, name: str) -> AsyncIterator[KeyedTable]:
        """``name`` is schema and table. Raises ConfigurationError if it is not there, PostgresError."""
        conninfo = make_conninfo(dsn, application_name="holdfast_match", options=SESSION, client_encoding="UTF8")
        try:
            session = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        except psycopg.Error as error:
            raise PostgresError(f"the primary does not take a session: {str(error).strip()}") from error
        try:
            row = await (await session.execute(_TABLE, (name,))).fetchone()
            if row is None:
                raise ConfigurationError(f"--table: the primary has no table {name} in {session.info.dbname} now")
            oid, schema, table = row
            types: dict[str, str] = dict(await (await session.execute(_COLUMNS, (oid,))).fetchall())
            yield cls(schema, table, types, oid, session)
        except psycopg.Error as error:
            raise PostgresError(f"{name} cannot be read on the primary: {str(error).strip()}") from error
        finally:
            await session.close()

    async def is_unique(self, columns: Sequence[str]) -> bool:
        """Whether an index sees to it that two rows differ in these columns."""
        row = await (await self._session.execute(_UNIQUE, (self._oid, list(columns)))).fetchone()
        return row is not None and bool(row[0])

    async def rows(
        self, columns: Sequence[str], keys: Sequence[tuple[str, ...]], is_known: Callable[[str], bool]
    ) -> list[Row]:
        """The rows whose key columns have one of these values.

        Types that are not ``is_known`` are compared as text, so that a value that is none of theirs is no error.
        """
        tuples = sql.SQL(", ").join(sql.SQL("%s::text[]") for _ in columns)
        names = [sql.Identifier(f"k{n}") for n in range(len(columns))]
        wanted, given = [], []
        for column, name in zip(columns, names, strict=True):
            type_name = self.types[column]
            cast = sql.SQL(f"::{type_name}" if is_known(type_name) else "")
            given.append(sql.SQL("u.{}{}").format(name, cast))
            own = sql.SQL("t.{}") if is_known(type_name) else sql.SQL("t.{}::text")
            wanted.append(own.format(sql.Identifier(column)))
        query = sql.SQL("SELECT {} FROM {} AS t WHERE ({}) IN (SELECT {} FROM unnest({}) AS u ({}))").format(
            sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(column)) for column in self.types),
            sql.Identifier(self.schema, self.name),
            sql.SQL(", ").join(wanted),
            sql.SQL(", ").join(given),
            tuples,
            sql.SQL(", ").join(names),
        )
        cursor = await self._session.execute(query, [list(values) for values in zip(*keys, strict=True)])
        return _rows(cursor, list(self.types))


def _rows(cursor: psycopg.AsyncCursor[Any], columns: Sequence[str]) -> list[Row]:
    result = cursor.pgresult
    assert result is not None
    return [
        {column: _text(result.get_value(number, at)) for at, column in enumerate(columns)}
        for number in range(result.ntuples)
    ]


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "surrogateescape")


async def databases(dsn: str) -> list[str]:
    """Of a server; raises PostgresError."""
    try:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
            return [str(name) for (name,) in await (await session.execute(DATABASES)).fetchall()]
    except psycopg.Error as error:
        raise PostgresError(f"the primary does not take a session: {str(error).strip()}") from error
