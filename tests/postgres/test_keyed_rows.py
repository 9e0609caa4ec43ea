"""Rows by key: by what the values mean, whatever the types, and without an error for what is no value."""

from __future__ import annotations

import pytest
from psycopg.conninfo import make_conninfo

from holdfast.core.match.values import canonical, is_known
from holdfast.model.errors import ConfigurationError
from holdfast.postgres.keyed_rows import KeyedTable, databases
from tests.postgres.lab import PASSWORD, Lab

pytestmark = pytest.mark.live

TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'it''s fine');
CREATE DOMAIN cents AS numeric(12,2);
CREATE TABLE "odd table" (
  "a key" text, n cents, m mood, at timestamptz, c char(4), d date, u uuid, f float8, b bool, v varchar(3), l bigint,
  PRIMARY KEY ("a key", n));
CREATE UNIQUE INDEX ON "odd table" (l) WHERE b;
CREATE UNIQUE INDEX ON "odd table" (lower(v));
CREATE UNIQUE INDEX ON "odd table" (at) INCLUDE (d);
INSERT INTO "odd table" VALUES (
  'x', 1.5, 'it''s fine', '2026-11-21 12:00+01', 'DE', '0044-03-15 BC', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 0.1,
  true, 'abc', 7), ('y', 1, 'sad', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO parts VALUES (1, '2026-05-05');
"""
SPELLED = {
    "a key": "x", "n": "1.500", "m": "it's fine", "at": "2026-11-21T11:00:00Z", "c": "DE", "d": "0044-03-15 BC",
    "u": "{a0eebc999c0b4ef8bb6d6bb9bd380a11}", "f": "1e-1", "b": "yes", "v": "abc", "l": "7.0",
}  # fmt: skip


async def test_rows_are_found_by_what_their_values_mean(lab: Lab) -> None:
    await lab.primary("a")
    connection = await lab.connect("a")
    await connection.execute(TABLES)
    dsn = make_conninfo(connection.info.dsn, password=PASSWORD)
    assert "postgres" in await databases(dsn)
    async with KeyedTable.open(dsn, "public.odd table") as table:
        assert list(table.types) == list(SPELLED)
        for column, text in SPELLED.items():
            value = canonical(text, table.types[column])
            assert value is not None, column
            absent = {"m": "no such mood", "n": "1.501", "v": "abcd", "c": "DE FR"}.get(column, value)
            (row,) = await table.rows([column], [(value,), (absent,)], is_known)
            assert row["a key"] == "x"
            printed = row[column]
            assert printed is not None
            assert canonical(printed, table.types[column]) == value
            if absent != value:
                assert await table.rows([column], [(absent,)], is_known) == []
        rows = await table.rows(["a key", "n"], [("x", "1.5"), ("y", "2"), ("y", "1")], is_known)
        assert [row["a key"] for row in rows] == ["x", "y"]
        unique = {name: await table.is_unique([name]) for name in ("a key", "n", "l", "v", "at", "u")}
        assert [name for name, holds in unique.items() if holds] == ["at"]
        assert await table.is_unique(["n", "u", "a key"])
    async with KeyedTable.open(dsn, "public.parts") as table:
        assert await table.rows(["id"], [("1",)], is_known) == [{"id": "1", "at": "2026-05-05"}]
        assert not await table.is_unique(["id"])
    with pytest.raises(ConfigurationError, match=r"no table public\.none in postgres"):
        async with KeyedTable.open(dsn, "public.none"):
            pass
