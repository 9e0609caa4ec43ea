"""What clients are told when their server is lost: never more than is known."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.proxy.cluster import Pair, fetch, wait_until_active
from tests.proxy.conftest import with_oldest_and_newest
from tests.proxy.servers import Server

pytestmark = pytest.mark.live


async def test_killed_in_the_middle_of_a_statement(pair: Pair) -> None:
    query = "select pg_sleep(60)"
    async with await pair.cluster.connect() as connection:
        running = asyncio.create_task(connection.execute(query))
        await wait_until_active(pair.n1, query)
        await pair.lose_primary()
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown) as caught:
            await running
        assert caught.value.diag.message_hint
        after = asyncio.create_task(fetch(connection, "select 42"))
        await pair.promote()
        assert await after == 42


async def test_killed_while_rows_flow(pair: Pair) -> None:
    """Rows that came stay, then an error, then the session goes on."""
    query = b"select n, pg_sleep(case when n = 5000 then 60 else 0 end) from generate_series(1, 6000) n"
    async with await pair.cluster.connect() as connection:
        connection.pgconn.send_query(query)
        connection.pgconn.set_single_row_mode()
        results: list[psycopg.pq.abc.PGresult] = []
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(connection.pgconn.socket, readable.set)
        killed = False
        while True:
            while not connection.pgconn.is_busy():
                result = connection.pgconn.get_result()
                if result is None:
                    break
                results.append(result)
            else:
                if len(results) > 10 and not killed:
                    killed = True
                    await pair.lose_primary()
                readable.clear()
                await readable.wait()
                connection.pgconn.consume_input()
                continue
            break
        loop.remove_reader(connection.pgconn.socket)
        assert results[-1].error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"08007"
        assert 10 < len(results) < 6000
        await pair.promote()
        assert await fetch(connection, "select 1") == 1


async def test_open_transaction_is_lost(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("begin")
        await connection.execute("update ledger set balance = 7")
        await pair.fail_over()
        with pytest.raises(psycopg.errors.AdminShutdown, match="nothing of the transaction was committed"):
            await connection.execute("update ledger set balance = 8")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await connection.execute("update ledger set balance = 9")
        cursor = await connection.execute("commit")
        assert cursor.statusmessage == "ROLLBACK"
        assert await fetch(connection, "select balance from ledger") == 0


async def test_commit_after_the_loss_is_no_success(pair: Pair) -> None:
    simple, drivers = await pair.cluster.connect(), await pair.cluster.connect()
    rolled_back = await pair.cluster.connect()
    for connection in (simple, drivers, rolled_back):
        await connection.execute("begin")
        await connection.execute("select count(*) from ledger")
    await pair.fail_over()
    with pytest.raises(psycopg.errors.AdminShutdown):
        await simple.execute("commit")
    with pytest.raises(psycopg.errors.AdminShutdown):
        await drivers.execute("commit", prepare=True)
    await rolled_back.execute("rollback")
    for connection in (simple, drivers, rolled_back):
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await fetch(connection, "select 1") == 1
        await connection.close()


async def test_statement_in_a_transaction_is_surely_lost(pair: Pair) -> None:
    query = "select pg_sleep(60)"
    async with await pair.cluster.connect() as connection:
        await connection.execute("begin")
        running = asyncio.create_task(connection.execute(query))
        await wait_until_active(pair.n1, query)
        await pair.lose_primary()
        with pytest.raises(psycopg.errors.AdminShutdown):
            await running
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        await pair.promote()
        await connection.execute("rollback")
        assert await fetch(connection, "select 1") == 1


async def test_pipeline_is_lost_as_a_whole(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:

        async def run_pipeline() -> None:
            async with connection.pipeline() as pipeline:
                await connection.execute("select 1")
                await connection.execute("select pg_sleep(60)")
                await connection.execute("select 2")
                await pipeline.sync()

        running = asyncio.create_task(run_pipeline())
        await wait_until_active(pair.n1, "select pg_sleep(60)")
        await pair.lose_primary()
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
            await running
        await pair.promote()
        assert await fetch(connection, "select 1") == 1


async def test_copy_in_is_lost(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("create table t (n int)")

        async def run_copy() -> None:
            async with connection.cursor().copy("copy t from stdin") as copy:
                await copy.write(b"1\n" * 1000)
                await pair.lose_primary()
                await copy.write(b"2\n" * 1000)

        with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
            await run_copy()
        await pair.promote()
        assert await fetch(connection, "select count(*) from t") == 0


async def count_rows(server: Server, table: str) -> Any:
    return (await asyncio.to_thread(server.query, f"select count(*) from {table}"))[0][0]


@with_oldest_and_newest
async def test_cancelled_wait_for_standbys_is_no_success(pair: Pair) -> None:
    """PostgreSQL answers INSERT 0 1 with a warning; the row exists on the primary only."""
    async with await pair.cluster.connect() as connection, await pair.cluster.connect() as extended:
        await connection.execute("create table t (n int)")
        await asyncio.to_thread(pair.n1.set_standby_names, "nobody")
        waiting = "select count(*) = 1 from pg_stat_activity where wait_event = 'SyncRep'"
        for victim, values in ((connection, None), (extended, [])):
            running = asyncio.create_task(victim.execute("insert into t values (1)", values, prepare=values == []))
            await asyncio.to_thread(pair.n1.wait_for, waiting)
            await victim.cancel_safe()
            with pytest.raises(psycopg.errors.TransactionResolutionUnknown) as caught:
                await running
            assert "standbys" in (caught.value.diag.message_detail or "")
            assert await fetch(victim, "select 1") == 1


@with_oldest_and_newest
async def test_waiting_commit_is_not_cancelled(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("create table t (n int)")
        await asyncio.to_thread(pair.n1.set_standby_names, "nobody")
        await connection.execute("begin")
        await connection.execute("insert into t values (1)")
        running = asyncio.create_task(connection.execute("commit"))
        await asyncio.to_thread(
            pair.n1.wait_for, "select exists (select from pg_stat_activity where wait_event = 'SyncRep')"
        )
        await connection.cancel_safe()
        assert not running.done()
        await asyncio.to_thread(pair.n1.set_standby_names, None)
        cursor = await running
        assert cursor.statusmessage == "COMMIT"


async def test_writers_under_load(pair: Pair) -> None:
    """Every acknowledged row is on the new primary, every refused one is not, and no client is lost."""
    await asyncio.to_thread(pair.n1.set_standby_names, "n2")
    await asyncio.to_thread(pair.n1.wait_for, "select sync_state = 'sync' from pg_stat_replication")
    outcome: dict[int, str] = {}
    goal = asyncio.Event()

    async def write(connection: psycopg.AsyncConnection[Any], writer: int, prepared: bool) -> None:
        after_failover = 0
        number = writer * 1_000_000
        while after_failover < 20:
            number += 1
            try:
                await connection.execute("insert into written values (%s::int)", [number], prepare=prepared)
                outcome[number] = "acknowledged"
                after_failover += pair.proxy.routing.epoch == 2
            except psycopg.errors.TransactionResolutionUnknown:
                outcome[number] = "unknown"
            if len(outcome) > 200:
                goal.set()

    connections = [await pair.cluster.connect() for _ in range(8)]
    await connections[0].execute("create table written (n int)")
    tasks = [asyncio.create_task(write(c, n, bool(n % 2))) for n, c in enumerate(connections)]
    await goal.wait()
    await pair.fail_over()
    await asyncio.gather(*tasks)
    rows = [row[0] for row in pair.n2.query("select n from written", "app")]
    assert len(rows) == len(set(rows))
    acknowledged = {number for number, word in outcome.items() if word == "acknowledged"}
    assert acknowledged <= set(rows)
    assert set(rows) <= set(outcome)
    assert len(outcome) - len(acknowledged) <= 8
    for connection in connections:
        await connection.close()
