"""Looks at tables of a primary and of a standby, chunk by chunk, for `holdfast.core.parity` to compare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from holdfast.core.parity import Version
from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn
from holdfast.postgres.session import message_of

CHUNK_BLOCKS = 512
"""4 MB: a standby that holds a chunk's rows up is in nobody's way for long."""
_CONFLICTS_MAX = 20
_CONFLICT_PAUSE_S = 0.25
_REPLAY_POLL_S = 0.01

# Rows are compared as text: the same settings on both sides, whatever the database or the role has.
_SETTINGS = {
    "application_name": "holdfast_parity",
    "search_path": "pg_catalog",
    "default_transaction_read_only": "on",
    "statement_timeout": "0",
    "lock_timeout": "5s",
    "row_security": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "synchronize_seqscans": "off",
    "enable_seqscan": "off",
    "datestyle": "ISO, YMD",
    "intervalstyle": "iso_8601",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
}
_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"
_TABLES = """
SELECT c.oid::bigint, n.nspname, c.relname, pg_relation_filenode(c.oid)::bigint,
       (pg_relation_size(c.oid) / current_setting('block_size')::int)::bigint,
       ARRAY(SELECT a.attname
               FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_attribute a ON a.attnum = k.attnum
              WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
              ORDER BY k.place)::text[]
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_t(emp|oast)'
 ORDER BY pg_relation_size(c.oid), n.nspname, c.relname
"""
_OLDEST = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint & 4294967295"
_SAME = "SELECT pg_relation_filenode(%s::oid)::bigint"
_DIGEST = 'hashtextextended((holdfast_row.*)::text COLLATE "C", 0)'
_SUM = (
    "SELECT count(*), coalesce(bit_xor(hashtextextended("
    "concat_ws(',', holdfast_row.ctid, holdfast_row.xmin, " + _DIGEST + ') COLLATE "C", 0)), 0) '
    "FROM ONLY {table} AS holdfast_row WHERE {where}"
)
_ROWS = (
    "SELECT (holdfast_row.ctid::text::point)[0]::bigint, (holdfast_row.ctid::text::point)[1]::bigint, "
    "holdfast_row.xmin::text::bigint, holdfast_row.xmax::text::bigint, " + _DIGEST + ", {key} "
    "FROM ONLY {table} AS holdfast_row WHERE {where}"
)
_INDEXES = """
SELECT i.indexrelid::bigint, n.nspname || '.' || c.relname,
       (SELECT quote_ident(en.nspname) FROM pg_extension e JOIN pg_namespace en ON en.oid = e.extnamespace
         WHERE e.extname = 'amcheck')
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE i.indrelid = %s::oid AND m.amname = 'btree' AND i.indisvalid AND c.relpersistence = 'p'
"""


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """A table as the primary had it when the comparison came to it."""

    oid: int
    database: str
    schema: str
    name: str
    filenode: int
    blocks: int
    key: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.database}.{self.schema}.{self.name}"

    def chunks(self) -> list[Chunk]:
        """The table in parts; the last one has no end, for what comes in meanwhile."""
        starts = range(0, max(self.blocks, 1), CHUNK_BLOCKS)
        return [Chunk(first, first + CHUNK_BLOCKS if first + CHUNK_BLOCKS < self.blocks else None) for first in starts]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks of a table: from ``first`` up to ``end``, which is not among them (None: all from there on)."""

    first: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Sum:
    """What equal chunks have in common."""

    rows: int
    digest: int


class CannotCompare(PostgresError):
    """The session with a server is gone, or its replay does not go on: no table can be compared."""


class Damaged(PostgresError):
    """A server cannot read what it has. ``node``: which one."""

    def __init__(self, node: str, words: str) -> None:
        super().__init__(words)
        self.node = node


class Side:
    """One server, in one database."""

    def __init__(self, node: str, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self._node = node
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, node: str, dsn: str) -> AsyncIterator[Side]:
        """A session for comparing; raises PostgresError."""
        options = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in _SETTINGS.items())
        try:
            connection = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, connect_timeout=10, options=options
            )
        except psycopg.Error as error:
            raise PostgresError(message_of(error)) from error
        async with connection:
            yield cls(node, connection)

    async def databases(self) -> list[str]:
        """The databases that take sessions."""
        return [name for (name,) in await self._fetch(_DATABASES)]

    async def tables(self, database: str) -> list[ComparedTable]:
        """The tables of this database whose rows a standby has as well, small ones first."""
        return [
            ComparedTable(oid, database, schema, name, filenode, blocks, tuple(key))
            for oid, schema, name, filenode, blocks, key in await self._fetch(_TABLES)
        ]

    async def is_same(self, table: ComparedTable) -> bool:
        """Whether the table is still in the file that it was in: neither dropped nor rewritten."""
        return await self._fetch(_SAME, (table.oid,)) == [(table.filenode,)]

    async def sum_up(self, table: ComparedTable, chunk: Chunk) -> Sum:
        """A digest of what is visible in a chunk."""
        ((rows, digest),) = await self._fetch(_of(_SUM, table, chunk))
        return Sum(rows, digest)

    async def versions(self, table: ComparedTable, chunk: Chunk) -> tuple[list[Version], int]:
        """What is visible in a chunk, and the oldest transaction that was still running before that look."""
        ((oldest,),) = await self._fetch(_OLDEST)
        found = await self._fetch(_of(_ROWS, table, chunk))
        return [
            Version(block, at, xmin, xmax, digest, key or "") for block, at, xmin, xmax, digest, key in found
        ], oldest

    async def written_lsn(self) -> Lsn:
        """Of a primary: beyond everything that could be seen until now."""
        ((text,),) = await self._fetch("SELECT pg_current_wal_insert_lsn()::text")
        return Lsn.parse(text)

    async def replayed_lsn(self) -> Lsn:
        """Of a standby: how far it has replayed."""
        ((text,),) = await self._fetch("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text")
        return Lsn.parse(text)

    async def block_bytes(self) -> int:
        """The size of a block."""
        ((size,),) = await self._fetch("SELECT current_setting('block_size')::int")
        return int(size)

    async def replayed(self, lsn: Lsn, deadline_s: float) -> None:
        """Of a standby: wait until it has replayed that far; raises CannotCompare if it does not in time."""
        give_up_s = asyncio.get_running_loop().time() + deadline_s
        while True:
            ((there, at),) = await self._fetch(
                "SELECT coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, true), pg_last_wal_replay_lsn()::text",
                (str(lsn),),
            )
            if there:
                return
            if asyncio.get_running_loop().time() > give_up_s:
                raise CannotCompare(
                    f"the standby has replayed up to {at}, and does not come to {lsn}: replay stands still"
                )
            await asyncio.sleep(_REPLAY_POLL_S)

    async def check_indexes(self, table: ComparedTable) -> tuple[int, list[str]] | None:
        """Let amcheck go through the B-trees: how many, and its words against some; None where it is not installed."""
        broken: list[str] = []
        indexes = await self._fetch(_INDEXES, (table.oid,))
        for oid, name, schema in indexes:
            if schema is None:
                return None
            try:
                await self._fetch(f"SELECT {schema}.bt_index_check(%s::oid::regclass, true)", (oid,))
            except Damaged as error:
                broken.append(f"{table.database}.{name}: {error}")
        return len(indexes), broken

    async def _fetch(self, query: str | sql.Composed, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Raises PostgresError, Damaged, CannotCompare; what a recovery conflict ended is asked again."""
        for attempt in range(_CONFLICTS_MAX):
            try:
                text = query.encode() if isinstance(query, str) else query
                cursor = await self._connection.execute(text, values or None)
                return await cursor.fetchall()
            except (psycopg.errors.SerializationFailure, psycopg.errors.QueryCanceled) as error:
                if attempt == _CONFLICTS_MAX - 1:
                    raise PostgresError(message_of(error)) from error
                await asyncio.sleep(_CONFLICT_PAUSE_S)
            except (psycopg.errors.DataCorrupted, psycopg.errors.IndexCorrupted) as error:
                raise Damaged(self._node, message_of(error)) from error
            except psycopg.Error as error:
                kind = CannotCompare if self._connection.closed else PostgresError
                raise kind(message_of(error)) from error
        raise AssertionError("unreachable")


def _of(query: LiteralString, table: ComparedTable, chunk: Chunk) -> sql.Composed:
    where = sql.SQL("holdfast_row.ctid >= {}::tid").format(sql.Literal(f"({chunk.first},0)"))
    if chunk.end is not None:
        where += sql.SQL(" AND holdfast_row.ctid < {}::tid").format(sql.Literal(f"({chunk.end},0)"))
    columns = sql.SQL(", ").join(sql.SQL("holdfast_row.{}").format(sql.Identifier(name)) for name in table.key)
    key = sql.SQL("ROW({})::text").format(columns) if table.key else sql.SQL("NULL::text")
    return sql.SQL(query).format(table=sql.Identifier(table.schema, table.name), where=where, key=key)
