"""Reads tuples of the isolated copy by where the log says that they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from holdfast.model.errors import PostgresError
from holdfast.model.rows import Column, Row, Table
from holdfast.postgres.rowwrites import ANYWHERE, Place
from holdfast.postgres.salvage.copy import Connection, IsolatedCopy

_ROWS_AT_ONCE = 200
"""Values may be large: so many rows are asked for at a time."""
_DATABASES = "SELECT oid::text, datname FROM pg_catalog.pg_database WHERE datallowconn"
_TABLE = """
SELECT c.oid::bigint, n.nspname, c.relname, coalesce(rn.nspname, n.nspname), coalesce(r.relname, c.relname),
       c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
  LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 WHERE c.oid = pg_catalog.pg_filenode_relation(%s, %s)
"""
_COLUMNS = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', a.attidentity = 'a',
       k.typcategory IN ('S', 'N', 'B', 'D', 'T', 'I', 'E', 'R') OR EXISTS (
         SELECT FROM pg_catalog.pg_operator o
          WHERE o.oprname = '=' AND o.oprnamespace = 'pg_catalog'::regnamespace
            AND o.oprleft = k.oid AND o.oprright = k.oid)
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  JOIN pg_catalog.pg_type k ON k.oid = CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""
_KEY = """
SELECT a.attname
  FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
  JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum
 WHERE i.indrelid = %s AND a.attrelid = i.indrelid AND k.place <= i.indnkeyatts
   AND i.indexrelid = (SELECT indexrelid FROM pg_catalog.pg_index
                        WHERE indrelid = i.indrelid AND (indisprimary OR indisreplident) AND indisvalid
                        ORDER BY indisprimary DESC LIMIT 1)
 ORDER BY k.place
"""


class Tuple(NamedTuple):
    """A tuple that is visible now; ``xmin`` is who wrote it."""

    place: Place
    xmin: int
    table: Table
    row: Row


@dataclass(frozen=True, slots=True)
class _Relation:
    """What a filenode is now: ``table`` is None for what has no rows of users (catalog, TOAST)."""

    name: str
    schema: str
    table: Table | None


@dataclass(slots=True)
class Reader:
    """Reads what is visible in the copy at the moment. ``names`` remembers what the relations were called."""

    copy: IsolatedCopy
    names: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    """Databases that take no sessions."""
    _databases: dict[str, str] = field(default_factory=dict)
    _relations: dict[str, _Relation] = field(default_factory=dict)

    def forget(self) -> None:
        """The catalog has changed: what was learnt of tables may be wrong."""
        self._databases.clear()
        self._relations.clear()

    async def read(self, places: Iterable[Place]) -> list[Tuple]:
        """Every visible tuple at these places; raises PostgresError."""
        by_relation: dict[str, list[Place]] = defaultdict(list)
        for place in dict.fromkeys(places):
            by_relation[place.relation].append(place)
        found: list[Tuple] = []
        try:
            for wanted in by_relation.values():
                relation = await self._relation(wanted[0])
                if relation is not None and relation.table is not None:
                    session = await self.copy.connect(relation.table.database)
                    found += [t async for t in _read(session, relation, relation.table, wanted)]
        except psycopg.Error as error:
            raise PostgresError(f"the copy for the salvage cannot be read: {str(error).strip()}") from error
        return found

    async def table(self, place: Place) -> Table | None:
        """The table that a place lies in; None if it is none of the users', or not there now."""
        try:
            relation = await self._relation(place)
        except psycopg.Error as error:
            raise PostgresError(f"the copy for the salvage cannot be read: {str(error).strip()}") from error
        return None if relation is None else relation.table

    async def _relation(self, place: Place) -> _Relation | None:
        known = self._relations.get(place.relation)
        if known is None:
            known = await self._look_up(place)
            if known is not None:
                self._relations[place.relation] = known
                self.names[place.relation] = known.name
        return known

    async def _look_up(self, place: Place) -> _Relation | None:
        if not self._databases:
            session = await self.copy.connect("postgres")
            self._databases = dict(await (await session.execute(_DATABASES)).fetchall())
        space, _, node = place.relation.split("/")
        database = self._databases.get(place.database)
        if database is None:
            if place.database != "0":
                self.unreadable.add(place.database)
            return None
        session = await self.copy.connect(database)
        row = await (await session.execute(_TABLE, (int(space), int(node)))).fetchone()
        if row is None:
            return None
        oid, schema, name, root_schema, root, is_users = row
        full_name = f"{database}.{schema}.{name}"
        if not is_users:
            return _Relation(full_name, schema, None)
        columns = [Column(*found) for found in await (await session.execute(_COLUMNS, (oid,))).fetchall()]
        key = [found[0] for found in await (await session.execute(_KEY, (oid,))).fetchall()]
        is_partition = (root_schema, root) != (schema, name)
        partition = f"{schema}.{name}" if is_partition else None
        return _Relation(full_name, schema, Table(database, root_schema, root, tuple(columns), tuple(key), partition))


async def _read(session: Connection, relation: _Relation, table: Table, places: list[Place]) -> AsyncIterator[Tuple]:
    name = relation.name.removeprefix(f"{table.database}.{relation.schema}.")
    values = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    comma = sql.SQL(", " if table.columns else "")
    query = sql.SQL("SELECT ctid::text, xmin::text{}{} FROM ONLY {} WHERE ").format(
        comma, values, sql.Identifier(relation.schema, name)
    )
    exact = [f"({p.block},{p.offset})" for p in places if p.offset != ANYWHERE]
    for at in range(0, len(exact), _ROWS_AT_ONCE):
        cursor = await session.execute(query + sql.SQL("ctid = ANY (%s::tid[])"), (exact[at : at + _ROWS_AT_ONCE],))
        for found in _tuples(cursor, places[0].relation, table):
            yield found
    for block in [p.block for p in places if p.offset == ANYWHERE]:
        bounds = (f"({block},0)", f"({block + 1},0)")
        cursor = await session.execute(query + sql.SQL("ctid >= %s::tid AND ctid < %s::tid"), bounds)
        for found in _tuples(cursor, places[0].relation, table):
            yield found


def _tuples(cursor: psycopg.AsyncCursor[Any], relation: str, table: Table) -> Iterator[Tuple]:
    """The values as they came over the wire: what the types' output functions print."""
    result = cursor.pgresult
    assert result is not None
    for number in range(result.ntuples):
        place, xmin, *values = (_text(result.get_value(number, i)) for i in range(result.nfields))
        block, offset = str(place).strip("()").split(",")
        row = {column.name: value for column, value in zip(table.columns, values, strict=True)}
        yield Tuple(Place(relation, int(block), int(offset)), int(str(xmin)), table, row)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "surrogateescape")
