"""What clients see when the primary goes away and another one comes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import pytest

from holdfast.model.register import NodeState
from holdfast.proxy.lane import Purpose
from holdfast.proxy.run import Proxy
from tests.proxy.cluster import Cluster, fetch, member, until
from tests.proxy.conftest import ServerMaker
from tests.proxy.servers import PASSWORD, USER, Server

pytestmark = pytest.mark.live


class Pair:
    """A primary, its standby, a proxy, and the failover from one to the other."""

    def __init__(self, cluster: Cluster, n1: Server, n2: Server, proxy: Proxy) -> None:
        self.cluster = cluster
        self.n1 = n1
        self.n2 = n2
        self.proxy = proxy

    def held(self) -> int:
        return self.proxy.lanes[Purpose.WRITE].held

    async def wait_until_held(self, count: int) -> None:
        await until(lambda: self.held() == count)

    async def lose_primary(self) -> None:
        """The primary dies, and an epoch is opened."""
        await asyncio.to_thread(self.n1.kill)
        await self.cluster.open_epoch()
        await until(lambda: self.proxy.routing.epoch == 2)

    async def promote(self) -> None:
        """The standby becomes the primary of epoch 2 (and of timeline 2)."""
        await asyncio.to_thread(self.n2.promote)
        await self.cluster.serve(self.n2, 2)
        await until(lambda: self.proxy.routing.primary() is not None)

    async def fail_over(self) -> None:
        await self.lose_primary()
        await self.promote()


@pytest.fixture
async def pair(cluster: Cluster, make_server: ServerMaker) -> Pair:
    n1 = await asyncio.to_thread(make_server, "n1")
    n2 = await asyncio.to_thread(make_server, "n2", n1)
    await asyncio.to_thread(n1.wait_for, "select exists (select from pg_stat_replication where state = 'streaming')")
    await cluster.serve(n1, 1)
    await cluster.record(n2, NodeState.STANDBY, 1)
    return Pair(cluster, n1, n2, await cluster.start())


async def wait_until_active(server: Server, query: str) -> None:
    sql = f"select exists (select from pg_stat_activity where state = 'active' and query = '{query}')"
    await asyncio.to_thread(server.wait_for, sql)


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
    await cluster.start(hold_max_ms=400)
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


async def test_server_of_an_old_epoch_is_refused(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await pair.cluster.open_epoch()
        await pair.cluster.serve(pair.n1, 2)  # but its timeline is 1
        refused = pair.proxy.lanes[Purpose.WRITE].counters
        running = asyncio.create_task(fetch(connection, "select pg_is_in_recovery(), 1"))
        await until(lambda: refused.servers_refused > 2)
        assert not running.done()
        await pair.promote()
        assert await running is False
        assert await fetch(connection, "select inet_server_port()") == pair.n2.port


async def test_a_server_that_never_answers_is_left_when_the_register_moves(cluster: Cluster, lasting: Server) -> None:
    """Long time-outs, so that only the register's change can end the attempt."""
    accepted = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        accepted.set()

    hole = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    silent = SimpleNamespace(name="n9", port=hole.sockets[0].getsockname()[1])
    await cluster.serve(silent, 1)
    await cluster.start(server_connect_ms=60_000)
    connecting = asyncio.create_task(cluster.connect())
    await accepted.wait()
    await cluster.serve(lasting, 1)
    async with await connecting as connection:
        assert await fetch(connection, "select inet_server_port()") == lasting.port
    hole.close()
    for writer in writers:
        writer.close()


async def test_reads_take_turns(pair: Pair, make_server: ServerMaker) -> None:
    n3 = await asyncio.to_thread(make_server, "n3", pair.n1)
    await pair.cluster.record(n3, NodeState.STANDBY, 1)
    await until(lambda: len(pair.proxy.routing.standbys()) == 2)
    connections = [await pair.cluster.connect(read=True) for _ in range(6)]
    ports = [await fetch(connection, "select inet_server_port()") for connection in connections]
    assert sorted(ports) == sorted([pair.n2.port, n3.port] * 3)
    for connection in connections:
        await connection.close()


async def test_live_server_of_an_old_epoch_is_dropped(pair: Pair) -> None:
    """The old primary still answers, but another epoch has begun: nothing of it is forwarded any more."""
    query = "select pg_sleep(60)"
    async with await pair.cluster.connect() as connection:
        running = asyncio.create_task(connection.execute(query))
        await wait_until_active(pair.n1, query)
        await pair.cluster.open_epoch()
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown, match="may or may not"):
            await running


async def test_register_of_an_older_epoch_is_ignored(pair: Pair) -> None:
    assert pair.cluster.register is not None
    old = pair.cluster.register
    await pair.fail_over()
    async with await pair.cluster.connect() as connection:
        await pair.cluster.write(old)
        await pair.cluster.record(pair.n2, NodeState.PRIMARY, 2)
        assert await fetch(connection, "select inet_server_port()") == pair.n2.port
        assert pair.proxy.routing.epoch == 2


async def test_reads_go_to_the_standby_and_leave_it_when_it_rises(pair: Pair) -> None:
    idle, busy = await pair.cluster.connect(read=True), await pair.cluster.connect(read=True)
    for connection in (idle, busy):
        assert await fetch(connection, "select pg_is_in_recovery()") is True
    await busy.execute("begin")
    assert await fetch(busy, "select 1") == 1
    await pair.lose_primary()
    assert await fetch(idle, "select pg_is_in_recovery()") is True  # reads go on
    assert pair.cluster.register is not None
    await pair.cluster.write(pair.cluster.register.chosen(member("n2")))
    sessions = "select count(*) = 0 from pg_stat_activity where usename = 'app'"
    await asyncio.to_thread(pair.n2.wait_for, sessions)
    await pair.promote()
    with pytest.raises(psycopg.errors.AdminShutdown):
        await busy.execute("select 1")
    await busy.execute("rollback")
    for connection in (idle, busy):
        assert await fetch(connection, "select pg_is_in_recovery()") is False
        assert await fetch(connection, "show transaction_read_only") == "on"
        await connection.close()


async def test_reads_return_to_a_standby(pair: Pair) -> None:
    await pair.cluster.record(pair.n2, NodeState.REBUILDING, 0)
    async with await pair.cluster.connect(read=True) as connection:
        assert await fetch(connection, "select pg_is_in_recovery()") is False
        await connection.execute("set work_mem = '5MB'")
        await pair.cluster.record(pair.n2, NodeState.STANDBY, 1)
        await until(lambda: bool(pair.proxy.routing.standbys()))
        assert await fetch(connection, "select pg_is_in_recovery()") is True
        assert await fetch(connection, "show work_mem") == "5MB"


async def test_reads_stay_on_a_standby_that_follows(pair: Pair, make_server: ServerMaker) -> None:
    """n2's readers stay where they are when another node becomes the primary."""
    async with await pair.cluster.connect(read=True) as connection:
        pid = await fetch(connection, "select pg_backend_pid()")
        await pair.lose_primary()
        n3 = await asyncio.to_thread(make_server, "n3")
        await asyncio.to_thread(n3.stop)
        await pair.cluster.serve(n3, 2)
        await pair.cluster.record(pair.n2, NodeState.STANDBY, 2)
        assert await fetch(connection, "select pg_backend_pid()") == pid


async def test_handover_holds_and_releases(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection, await pair.cluster.connect() as inside:
        pid = await fetch(connection, "select pg_backend_pid()")
        await inside.execute("begin")
        assert pair.cluster.register is not None
        before = pair.cluster.register
        await pair.cluster.write(replace(before, handover="n2"))
        running = asyncio.create_task(fetch(connection, "select pg_backend_pid()"))
        await pair.wait_until_held(1)
        await inside.execute("commit")  # what had begun may end
        await pair.cluster.write(before)
        assert await running == pid


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


async def count_rows(server: Server, table: str) -> Any:
    return (await asyncio.to_thread(server.query, f"select count(*) from {table}"))[0][0]


async def test_cancelled_wait_for_standbys_is_no_success(pair: Pair) -> None:
    """PostgreSQL answers INSERT 0 1 with a warning; the row exists on the primary only."""
    async with await pair.cluster.connect() as connection, await pair.cluster.connect() as extended:
        await connection.execute("create table t (n int)")
        for sql in ("alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"):
            await asyncio.to_thread(pair.n1.query, sql)
        await asyncio.to_thread(pair.n1.wait_for, "select current_setting('synchronous_standby_names') = 'nobody'")
        waiting = "select count(*) = 1 from pg_stat_activity where wait_event = 'SyncRep'"
        for victim, values in ((connection, None), (extended, [])):
            running = asyncio.create_task(victim.execute("insert into t values (1)", values, prepare=values == []))
            await asyncio.to_thread(pair.n1.wait_for, waiting)
            await victim.cancel_safe()
            with pytest.raises(psycopg.errors.TransactionResolutionUnknown) as caught:
                await running
            assert "standbys" in (caught.value.diag.message_detail or "")
            assert await fetch(victim, "select 1") == 1


async def test_waiting_commit_is_not_cancelled(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("create table t (n int)")
        for sql in ("alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"):
            await asyncio.to_thread(pair.n1.query, sql)
        await asyncio.to_thread(pair.n1.wait_for, "select current_setting('synchronous_standby_names') = 'nobody'")
        await connection.execute("begin")
        await connection.execute("insert into t values (1)")
        running = asyncio.create_task(connection.execute("commit"))
        await asyncio.to_thread(
            pair.n1.wait_for, "select exists (select from pg_stat_activity where wait_event = 'SyncRep')"
        )
        await connection.cancel_safe()
        assert not running.done()
        for sql in ("alter system reset synchronous_standby_names", "select pg_reload_conf()"):
            await asyncio.to_thread(pair.n1.query, sql)
        cursor = await running
        assert cursor.statusmessage == "COMMIT"
