"""A routed session answers as the primary does, whoever answers."""

from __future__ import annotations

import asyncio
import random

import psycopg
import pytest

from tests.proxy.cluster import Pair, fetch
from tests.proxy.reading import AUTO, POOLINGS, Connection, pair, there

__all__ = ["pair"]
pytestmark = pytest.mark.live

STATEMENTS = (
    "select balance from ledger",
    "select balance from ledger",
    "select sum(balance) from ledger where account = 1",
    "table ledger",
    "with one as (select * from ledger) select count(*) from one",
    "update ledger set balance = balance + 1",
    "update ledger set balance = balance + 1 returning balance",
    "insert into ledger values (2, 5)",
    "delete from ledger where account = 2",
    "select own_next()",
    "select * from bumping",
    "select nowhere from ledger",
    "selec",
    "select 1 / (balance - balance) from ledger",
    "begin",
    "begin read only",
    "commit",
    "rollback",
    "savepoint s",
    "set datestyle = 'German'",
    "reset datestyle",
    "select date '2030-02-01'::text",
    "show datestyle",
    "create temp table if not exists passing as select 9 as balance",
    "select count(*) from passing",
    "discard all",
    "discard all",
    "discard all",
    "prepare p as select balance from ledger",
    "execute p",
    "deallocate all",
    "select balance from ledger for update",
    "select 1; select 2",
    "select a from noted",
    "update noted set a = a + 1",
    "",
)


@POOLINGS
@pytest.mark.parametrize("seed", range(2))
async def test_the_answers_are_those_of_the_primary(pair: Pair, pooling: str, seed: int) -> None:
    """The same statements in two sessions with data of their own, of which one is routed."""
    rng = random.Random(f"{seed} {pooling}")
    whole = "; ".join(
        f"create schema {name}; create table {name}.ledger as select 1 as account, 0 as balance; "
        f"create unlogged table {name}.noted as select 1 as a; create sequence {name}.counted; "
        f"create function {name}.own_next() returns bigint language sql as $$ select nextval('{name}.counted') $$; "
        f"create view {name}.bumping as select nextval('{name}.counted') as n"
        for name in ("routed", "plain")
    )
    async with await pair.cluster.connect() as maker:
        await maker.execute(whole.encode())
    path = "-c search_path={},public"
    async with (
        await pair.cluster.connect(options=f"{AUTO} {path.format('routed')}") as routed,
        await pair.cluster.connect(options=path.format("plain")) as plain,
    ):
        for _ in range(150):
            sql, by_parameters = rng.choice(STATEMENTS), rng.random() < 0.5
            expected = await _said(plain, sql, by_parameters)
            assert await _said(routed, sql, by_parameters) == expected, sql
            await asyncio.sleep(rng.choice((0, 0, 0.005)))
        for connection in (routed, plain):
            await connection.rollback()
            await connection.execute("discard all")
        assert await there(pair, routed, "select balance from ledger") == await fetch(
            plain, "select balance from ledger"
        )


async def _said(connection: Connection, sql: str, by_parameters: bool) -> object:
    """All that a client sees of a statement, by one protocol or the other."""
    try:
        cursor = await connection.execute(sql.encode(), () if by_parameters else None, prepare=by_parameters)
        rows = await cursor.fetchall() if cursor.description else None
        told: object = (rows, cursor.statusmessage)
    except psycopg.Error as error:
        told = error.sqlstate
    return told, connection.info.transaction_status, connection.info.parameter_status("DateStyle")
