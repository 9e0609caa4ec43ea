"""Statements wait while no primary serves, and go on when one does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import psycopg
import pytest

from holdfast.proxy.lane import Purpose
from tests.proxy.cluster import Cluster, Pair, fetch, until
from tests.proxy.servers import PASSWORD, USER, Server

pytestmark = pytest.mark.live


async def test_idle_clients_never_notice(pair: Pair) -> None:
    connections = [await pair.cluster.connect() for _ in range(30)]
    assert {await fetch(c, "select timeline_id from pg_control_checkpoint()") for c in connections} == {1}
    await pair.fail_over()
    waiting = [asyncio.create_task(fetch(c, "select pg_is_in_recovery()")) for c in connections]
    assert await asyncio.gather(*waiting) == [False] * 30
    assert pair.n2.query("select count(*) from pg_stat_activity where usename = 'app'") == [(30,)]
    for connection in connections:
        await connection.close()


async def test_statements_are_held_and_go_on_in_order(pair: Pair) -> None:
    connections = [await pair.cluster.connect() for _ in range(60)]
    await pair.lose_primary()
    tasks = []
    for count, connection in enumerate(connections, 1):
        tasks.append(asyncio.create_task(fetch(connection, "select pg_backend_pid()")))
        await pair.wait_until_held(count)
    await pair.promote()
    pids = await asyncio.gather(*tasks)
    assert pids == sorted(pids) or max(pids) - min(pids) > 10_000  # process numbers may start again
    assert pair.held() == 0
    for connection in connections:
        await connection.close()


async def test_held_before_the_register_moves(pair: Pair) -> None:
    """The process is gone, nobody has said so yet: the proxy tries again until somebody does."""
    async with await pair.cluster.connect() as connection:
        await asyncio.to_thread(pair.n1.kill)
        await until(lambda: pair.proxy.lanes[Purpose.WRITE].counters.servers_lost == 1)
        running = asyncio.create_task(fetch(connection, "select 1"))
        await pair.wait_until_held(1)
        await pair.cluster.open_epoch()
        await pair.promote()
        assert await running == 1


async def test_hold_ends(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(hold_max_ms=1500)  # a login is held no longer than that, too
    async with await cluster.connect() as connection:
        await cluster.open_epoch()
        for _ in range(2):
            with pytest.raises(psycopg.errors.CannotConnectNow) as caught:
                await connection.execute("select 1")
            assert "Try again in" in (caught.value.diag.message_hint or "")
        with pytest.raises(psycopg.errors.CannotConnectNow):
            await connection.execute("select %s", [1], prepare=True)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert cluster.register is not None
        await cluster.write(cluster.register.opened())
        # A server of timeline 1 must not serve epoch 4, so this one is refused too.
        await cluster.serve(lasting, 4)
        with pytest.raises(psycopg.errors.CannotConnectNow):
            await connection.execute("select 1")


async def test_too_many_held(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    proxy = await cluster.start(hold_max_clients=1)
    first, second = await cluster.connect(), await cluster.connect()
    await cluster.open_epoch()
    held = asyncio.create_task(first.execute("select 1"))
    await until(lambda: proxy.lanes[Purpose.WRITE].held == 1)
    with pytest.raises(psycopg.errors.CannotConnectNow, match="1 clients wait already"):
        await second.execute("select 1")
    await first.cancel_safe()
    with pytest.raises(psycopg.errors.QueryCanceled):
        await held
    await first.close()
    await second.close()


async def test_handover_holds_and_releases(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection, await pair.cluster.connect() as inside:
        pid = await fetch(inside, "select pg_backend_pid()")
        await inside.execute("begin")
        assert pair.cluster.register is not None
        before = pair.cluster.register
        await pair.cluster.write(replace(before, handover="n2"))
        await until(lambda: pair.proxy.lanes[Purpose.WRITE].counters.servers_let_go == 1)  # the idle one's
        running = asyncio.create_task(fetch(connection, "select 3"))
        await pair.wait_until_held(1)
        assert await fetch(inside, "select pg_backend_pid()") == pid
        await inside.execute("commit")  # what had begun may end
        await pair.cluster.write(before)
        assert await running == 3


async def test_switchover_loses_nothing(pair: Pair) -> None:
    connections = [await pair.cluster.connect() for _ in range(5)]
    assert pair.cluster.register is not None
    await pair.cluster.write(replace(pair.cluster.register, handover="n2"))
    await until(lambda: pair.proxy.routing.is_handing_over())
    running = [asyncio.create_task(fetch(c, "select inet_server_port()")) for c in connections]
    await pair.wait_until_held(5)
    await asyncio.to_thread(pair.n1.stop)
    await pair.cluster.open_epoch()
    await pair.promote()
    assert await asyncio.gather(*running) == [pair.n2.port] * 5
    for connection in connections:
        await connection.close()


async def test_new_clients_during_the_hold(pair: Pair) -> None:
    options: dict[str, Any] = {"options": "-c work_mem=6MB"}
    async with await pair.cluster.connect(application_name="early", **options):
        pass
    await pair.lose_primary()
    async with await pair.cluster.connect(application_name="late", **options) as known:
        assert known.info.parameter_status("application_name") == "late"
        stranger = asyncio.create_task(pair.cluster.connect(dbname="postgres"))
        running = asyncio.create_task(fetch(known, "show work_mem"))
        await pair.wait_until_held(2)
        await pair.promote()
        assert await running == "6MB"
        async with await stranger as connection:
            assert await fetch(connection, "select current_database()") == "postgres"


async def test_store_away(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await pair.cluster.store.close()
        assert await fetch(connection, "select 1") == 1
        async with await pair.cluster.connect() as other:
            assert await fetch(other, "select 2") == 2


async def test_state_is_replayed(pair: Pair) -> None:
    async with await pair.cluster.connect(options="-c statement_timeout=77s") as connection:
        await connection.execute("set search_path to pg_catalog")
        await connection.execute("begin; set work_mem = '7MB'; commit")
        await connection.execute("begin; set maintenance_work_mem = '7MB'; rollback")
        await connection.execute("select set_config('app.tenant', 'O''Brien', false)")
        await connection.execute("prepare by_sql (int) as select $1 + 1")
        await connection.execute("set timezone to 'Asia/Tokyo'")
        assert await fetch(connection, "select %s::int", 1) == 1
        cursor = await connection.execute("select %s::int * 2", [21], prepare=True)
        default = pair.n1.query("show maintenance_work_mem")[0][0]
        await pair.fail_over()
        cursor = await connection.execute("select %s::int * 2", [21], prepare=True)
        assert await cursor.fetchone() == (42,)
        assert await fetch(connection, "show search_path") == "pg_catalog"
        assert await fetch(connection, "show work_mem") == "7MB"
        assert await fetch(connection, "show maintenance_work_mem") == default
        assert await fetch(connection, "show app.tenant") == "O'Brien"
        assert await fetch(connection, "show statement_timeout") == "77s"
        assert await fetch(connection, "execute by_sql (41)") == 42
        assert connection.info.parameter_status("TimeZone") == "Asia/Tokyo"
        assert await fetch(connection, "select pg_is_in_recovery()") is False


async def test_asyncpg_goes_on(pair: Pair) -> None:
    connection = await asyncpg.connect(
        host="127.0.0.1", port=pair.cluster.write_port, user=USER, password=PASSWORD, database="app"
    )
    try:
        statement = await connection.prepare("select $1::int + 1")
        assert await statement.fetchval(1) == 2
        assert await connection.fetchval("select array['a']::text[]") == ["a"]
        await pair.fail_over()
        assert await statement.fetchval(2) == 3
        async with connection.transaction():
            assert await connection.fetchval("select pg_is_in_recovery()") is False
    finally:
        await connection.close()


async def test_listener_is_told(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("listen news")
        await pair.fail_over()
        with pytest.raises(psycopg.OperationalError, match="LISTEN"):
            await connection.execute("select 1")
        assert connection.closed


async def test_temporary_table_is_told_unless_discarded(pair: Pair) -> None:
    kept, discarded = await pair.cluster.connect(), await pair.cluster.connect()
    for connection in (kept, discarded):
        await connection.execute("create temp table t (n int)")
    await discarded.execute("discard all")
    await pair.fail_over()
    with pytest.raises(psycopg.OperationalError, match="temporary tables"):
        await kept.execute("select 1")
    assert await fetch(discarded, "select 1") == 1
    await discarded.close()
