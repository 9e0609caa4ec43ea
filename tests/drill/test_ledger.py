"""Clients that keep books against one real PostgreSQL: what they book is what is there."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from holdfast.drill.history import Outcome
from holdfast.drill.ledger import KINDS, BookedTransaction
from holdfast.drill.losses import books
from holdfast.drill.workload import Workload
from tests.drill.servers import Server
from tests.drill.test_workload import QUICK, until

pytestmark = pytest.mark.live


def ended(workload: Workload) -> list[BookedTransaction]:
    return [t for client in workload.ledgers for t in client.booked if t.outcome is Outcome.ACKNOWLEDGED]


async def content(dsn: str, schema: str, table: str) -> list[tuple[str | None, ...]]:
    """Every row, its values as PostgreSQL prints them."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table)))
        result = cursor.pgresult
        assert result is not None
        cells = [[result.get_value(n, i) for i in range(result.nfields)] for n in range(result.ntuples)]
        return sorted((tuple(None if c is None else c.decode() for c in row) for row in cells), key=str)


async def test_what_is_booked_is_there(server_home: Path, bin_dir: Path) -> None:
    server = Server(server_home, "n1", bin_dir)
    server.init()
    with (server.data / "postgresql.conf").open("a") as settings:
        settings.write("max_prepared_transactions = 20\n")
    workload = Workload(
        server.dsn, server.dsn, run_id="t2", writers=1, readers=0, idle=0, ledgers=4, rate_per_s=10, timeouts=QUICK
    )
    try:
        await server.start()
        await workload.setup()
        await workload.start()
        await until(lambda: len(ended(workload)) >= 60 and {t.kind for t in ended(workload)} == set(KINDS))
        await workload.stop()
        booked = [t for client in workload.ledgers for t in client.booked]
        assert [t for t in booked if t.outcome is not Outcome.ACKNOWLEDGED] == []
        assert {t.timeline for t in booked} == {1}
        assert len({t.xid for t in booked}) == len(booked)
        for table, expected in books(booked).items():
            rows = sorted((tuple(row.values()) for row in expected.values()), key=str)
            assert await content(server.dsn, workload.schema, table) == rows
        assert await server.sql("SELECT gid FROM pg_prepared_xacts") == []
    finally:
        await workload.close()
        server.kill()


async def test_a_client_stops_when_something_of_its_own_is_gone(server_home: Path, bin_dir: Path) -> None:
    server = Server(server_home, "n1", bin_dir)
    server.init()
    with (server.data / "postgresql.conf").open("a") as settings:
        settings.write("max_prepared_transactions = 20\n")
    workload = Workload(
        server.dsn, server.dsn, run_id="t3", writers=1, readers=0, idle=0, ledgers=1, rate_per_s=10, timeouts=QUICK
    )
    try:
        await server.start()
        await workload.setup()
        await workload.start()
        await until(lambda: len(ended(workload)) >= 3)
        await server.sql(f"DELETE FROM {workload.schema}.progress")
        await until(lambda: workload.ledgers[0].booked[-1].outcome is Outcome.ERROR)
        last = workload.ledgers[0].booked[-1]
        await workload.stop()
        assert workload.ledgers[0].booked[-1] is last
        assert (last.xid, last.changes) == (0, [])
    finally:
        await workload.close()
        server.kill()
