"""Transaction pooling: many clients, few server connections, and nobody notices whose they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
import pytest_asyncio
from pydantic import ValidationError

from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.register import NodeState
from holdfast.proxy.lane import Lane, Purpose
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until
from tests.proxy.conftest import ServerMaker, with_oldest_and_newest
from tests.proxy.servers import PASSWORD, USER, Server

pytestmark = pytest.mark.live

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Pooled:
    """A proxy with a small pool in front of the lasting primary."""

    def __init__(self, cluster: Cluster, server: Server) -> None:
        self.cluster = cluster
        self.server = server
        self._connections: list[Connection] = []

    async def start(self, size: int, **more: Any) -> None:
        await self.cluster.serve(self.server, 1)
        await self.cluster.start(pooling="transaction", pool_size=size, **more)

    async def connect(self, **more: Any) -> Connection:
        connection = await self.cluster.connect(**more)
        self._connections.append(connection)
        return connection

    async def backend(self, connection: Connection) -> int:
        return int(await fetch(connection, "select pg_backend_pid()"))

    @property
    def _lane(self) -> Lane:
        assert self.cluster.proxy is not None
        return self.cluster.proxy.lanes[Purpose.WRITE]

    def pools(self) -> list[dict[str, Any]]:
        return self._lane.pools.status()

    def held(self) -> int:
        return self._lane.held

    def inside(self) -> int:
        return self._lane.admission.gate.inside

    def opened(self) -> int:
        """Connections to servers since the start."""
        return self._lane.counters.servers_opened

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


@pytest_asyncio.fixture
async def pooled(cluster: Cluster, lasting: Server) -> AsyncIterator[Pooled]:
    made = Pooled(cluster, lasting)
    yield made
    await made.close()


async def test_many_clients_share_one_connection(pooled: Pooled) -> None:
    await pooled.start(1)
    clients = [await pooled.connect(application_name=f"client {n}") for n in range(20)]
    answers = await asyncio.gather(*(pooled.backend(c) for c in clients))
    assert len(set(answers)) == 1
    names = await asyncio.gather(*(fetch(c, "show application_name") for c in clients))
    assert names == [f"client {n}" for n in range(20)]
    assert [(p["open"], p["idle"], p["waiting"], p["size"]) for p in pooled.pools()] == [(1, 1, 0, 1)]
    assert pooled.opened() == 1


async def test_a_transaction_keeps_its_connection_and_others_wait_for_it(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    async with first.transaction():
        pid = await pooled.backend(first)
        waiting = asyncio.create_task(pooled.backend(second))
        await until(lambda: pooled.pools()[0]["waiting"] == 1)
        assert await pooled.backend(first) == pid
        assert not waiting.done()
    assert await waiting == pid


async def test_who_waits_too_long_is_told_of_the_pool(pooled: Pooled) -> None:
    await pooled.start(1, hold_max_ms=1500)
    first, second = await pooled.connect(), await pooled.connect()
    async with first.transaction():
        await first.execute("select 1")
        with pytest.raises(psycopg.errors.TooManyConnections, match="all 1 server connections") as refused:
            await second.execute("select 1")
        assert "proxy.pool_size" in str(refused.value.diag.message_hint)
    assert await fetch(second, "select 1") == 1, "the session goes on"


async def test_who_waits_is_served_in_the_order_of_coming(pooled: Pooled) -> None:
    await pooled.start(1)
    holder = await pooled.connect()
    clients = [await pooled.connect() for _ in range(10)]
    order: list[int] = []

    async def ask(number: int) -> None:
        await clients[number].execute("select 1")
        order.append(number)

    async with holder.transaction():
        await holder.execute("select 1")
        tasks = []
        for number in range(10):
            tasks.append(asyncio.create_task(ask(number)))
            await until(lambda: pooled.pools()[0]["waiting"] == len(tasks))
    await asyncio.gather(*tasks)
    assert order == sorted(order)


async def test_settings_follow_the_client_and_stay_with_it(pooled: Pooled) -> None:
    await pooled.start(1)
    plain, other = await pooled.connect(), await pooled.connect()
    await plain.execute("set search_path = 'one'; set work_mem = '5MB'")
    await other.execute("set search_path = 'two'; set timezone = 'Asia/Tokyo'")
    for _ in range(3):
        assert await fetch(plain, "show search_path") == "one"
        assert await fetch(other, "show search_path") == "two"
        assert await fetch(plain, "show work_mem") == "5MB"
        assert await fetch(other, "show work_mem") == "4MB"
        assert plain.info.parameter_status("TimeZone") != "Asia/Tokyo"
        assert other.info.parameter_status("TimeZone") == "Asia/Tokyo"
    await plain.execute("reset all")
    assert await fetch(plain, "show work_mem") == "4MB"
    await other.execute("set role pg_signal_backend")
    assert await fetch(plain, "select current_user") == USER
    assert await fetch(other, "select current_user") == "pg_signal_backend"
    async with plain.transaction():
        await plain.execute("set local work_mem = '7MB'")
    assert await fetch(other, "show work_mem") == "4MB"
    assert pooled.opened() == 1, "all on one connection"


async def test_an_application_name_that_was_set_is_nobody_elses(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(application_name="it's one"), await pooled.connect(application_name="two")
    await first.execute("set application_name = 'renamed'")
    assert await fetch(second, "show application_name") == "two"
    assert await fetch(first, "show application_name") == "renamed"
    for reset in ("reset application_name", "reset all", "discard all"):
        await first.execute(reset.encode())
        assert await fetch(second, "show application_name") == "two"
        await second.execute(reset.encode())
        assert await fetch(first, "show application_name") == "it's one"


@with_oldest_and_newest
async def test_prepared_statements_of_the_same_name_are_told_apart(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    for number in range(12):  # psycopg prepares from the fifth time on, both under the same name
        assert await fetch(first, "select %s::int + 1", number) == number + 1
        assert await fetch(second, "select %s::int * 2", number) == number * 2
    for connection in (first, second):
        assert connection.pgconn.socket >= 0
        assert await fetch(connection, "select count(*) from pg_prepared_statements") >= 2


async def test_deallocating_takes_away_ones_own_only(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    for connection in (first, second):
        for _ in range(7):
            assert await fetch(connection, "select %s::int", 7) == 7
    await first.execute("deallocate _pg3_0")
    assert await fetch(second, "select %s::int", 8) == 8
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        await first.execute("select %s::int", [9], prepare=True)
    await second.execute("deallocate all")
    second.prepare_threshold = None
    assert await fetch(second, "select %s::int", 10) == 10
    third = await pooled.connect()
    for number in range(7):
        assert await fetch(third, "select %s::int", number) == number


async def test_statements_that_live_on_many_connections(pooled: Pooled) -> None:
    """Whichever connection one gets, one's prepared statement is there, or is made again."""
    await pooled.start(3)

    async def work(number: int) -> None:
        connection = await pooled.connect()
        for turn in range(15):
            async with connection.transaction():
                assert await fetch(connection, f"select {number} + %s::int", turn) == number + turn
                await asyncio.sleep(0)
                assert await fetch(connection, "select %s::text", f"{number}/{turn}") == f"{number}/{turn}"

    await asyncio.gather(*(work(number) for number in range(12)))
    assert pooled.pools()[0]["open"] == 3


async def test_asyncpg_with_its_cache_of_statements(pooled: Pooled) -> None:
    await pooled.start(2)
    port = pooled.cluster.write_port
    options: dict[str, Any] = {"user": USER, "password": PASSWORD, "database": "app", "ssl": False}
    clients = [await asyncpg.connect(host="127.0.0.1", port=port, **options) for _ in range(6)]
    try:
        for turn in range(10):
            asked = [c.fetchval(f"select $1::int + {n}", turn) for n, c in enumerate(clients)]
            assert await asyncio.gather(*asked) == [turn + n for n in range(6)]
        async with clients[0].transaction():
            rows = [row async for row in clients[0].cursor("select generate_series(1, 200)")]
        assert len(rows) == 200
        copied = await clients[1].copy_from_query("select generate_series(1, 1000)", output=_Sink())
        assert copied == "COPY 1000"
    finally:
        for client in clients:
            await client.close()


class _Sink:
    def write(self, data: bytes) -> None:
        pass


async def test_pipelines_see_no_answer_that_is_not_theirs(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    for round_ in range(4):
        for connection in (first, second):
            async with connection.pipeline():
                cursors = [await connection.execute("select %s::int", [n], prepare=True) for n in range(round_, 20)]
                assert [(await c.fetchone()) for c in cursors] == [(n,) for n in range(round_, 20)]


async def test_an_error_in_a_pipeline_leaves_the_next_batch_whole(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    await first.execute("select %s::int as kept", [1], prepare=True)
    await second.execute("deallocate all")  # on the shared connection: theirs is gone there, too

    async def stumble() -> None:
        async with first.pipeline():
            await first.execute("select 1 / %s::int", [0], prepare=True)
            await first.execute("select %s::int as kept", [1], prepare=True)

    with pytest.raises(psycopg.errors.DivisionByZero):
        await stumble()
    assert (await (await first.execute("select %s::int as kept", [2], prepare=True)).fetchone()) == (2,)


@pytest.mark.parametrize(
    "pinning",
    ["listen news", "create temp table mine (a int)", "select pg_advisory_lock(7)", "prepare p as select 1"],
)
async def test_what_cannot_be_shared_keeps_its_connection(pooled: Pooled, pinning: str) -> None:
    await pooled.start(2)
    owner, other = await pooled.connect(), await pooled.connect()
    await owner.execute(pinning.encode())
    pid = await pooled.backend(owner)
    pids = {await pooled.backend(other) for _ in range(3)}
    assert pid not in pids
    assert await pooled.backend(owner) == pid
    await owner.execute("discard all")
    await pooled.backend(owner)
    assert pooled.pools()[0]["idle"] == 2


async def test_a_refused_switchover_takes_nothing_from_a_session_that_cannot_be_shared(pooled: Pooled) -> None:
    await pooled.start(2)
    owner = await pooled.connect()
    await owner.execute("create temp table mine as select 7 as kept")
    register = pooled.cluster.register
    assert register is not None
    await pooled.cluster.write(register.handing_over("n2"))
    waiting = asyncio.create_task(fetch(owner, "select kept from mine"))
    await until(lambda: pooled.held() == 1)
    await pooled.cluster.write(register.handing_over("n2").handing_over(None))
    assert await waiting == 7


async def test_a_bound_and_a_smaller_pool_starve_nobody(pooled: Pooled) -> None:
    await pooled.start(2)
    await pooled.cluster.store.put(KEYS.policy, DEFAULT_POLICY.changed({"statements_max": "3"}).to_json())
    clients = [await pooled.connect() for _ in range(12)]

    async def work(client: Connection) -> None:
        for _ in range(10):
            await client.execute("select pg_sleep(0.002)")

    async with asyncio.timeout(30):
        await asyncio.gather(*(work(client) for client in clients))
    assert pooled.opened() == 2
    assert pooled.inside() == 0


async def test_notifications_reach_the_one_who_listens(pooled: Pooled) -> None:
    await pooled.start(2)
    listener, speaker = await pooled.connect(), await pooled.connect()
    await listener.execute("listen news")
    heard = listener.notifies(timeout=10, stop_after=1)
    await speaker.execute("notify news, 'fresh'")
    assert [n.payload async for n in heard] == ["fresh"]


async def test_a_cancel_hits_nobody_else(pooled: Pooled) -> None:
    await pooled.start(1)
    victim, other = await pooled.connect(), await pooled.connect()
    for _ in range(20):
        sleeping = asyncio.create_task(victim.execute("select pg_sleep(30)"))
        await until(lambda: pooled.pools()[0]["idle"] == 0)
        asking = asyncio.create_task(pooled.backend(other))
        await victim.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping
        await asking


async def test_a_client_that_leaves_in_its_transaction_takes_nothing_with_it(pooled: Pooled) -> None:
    await pooled.start(1)
    leaver, other = await pooled.connect(), await pooled.connect()
    await leaver.set_autocommit(False)
    await leaver.execute("update ledger set balance = 99")
    leaver.pgconn.finish()
    async with asyncio.timeout(20):
        assert await fetch(other, "select balance from ledger") == 0


async def test_a_crowd_never_opens_more_than_the_pool(pooled: Pooled) -> None:
    await pooled.start(4)
    clients = [await pooled.connect() for _ in range(40)]
    for _ in range(3):
        await asyncio.gather(*(fetch(c, "select pg_sleep(0.01)") for c in clients))
    assert pooled.opened() == 4
    count = "select count(*) from pg_stat_activity where usename = 'app'"
    assert pooled.server.query(count) == [(4,)]


async def test_unused_and_old_connections_are_closed(pooled: Pooled) -> None:
    await pooled.start(4, pool_idle_s=0.1)
    client = await pooled.connect()
    await client.execute("select 1")
    await until(lambda: all(p["open"] == 0 for p in pooled.pools()))
    assert await fetch(client, "select 1") == 1


def test_the_narrowest_setting_counts(cluster: Cluster) -> None:
    by = {"app": "transaction", "@reports": "transaction", "app@reports": "session"}
    proxy = cluster.settings(pooling_by=by).proxy
    logins = [("app", "reports"), ("app", "app"), ("etl", "reports"), ("etl", "app")]
    assert [proxy.pooling_of(*login) for login in logins] == ["session", "transaction", "transaction", "session"]
    with pytest.raises(ValidationError, match="'@' names nobody: write `user`"):
        cluster.settings(pooling_by={"@": "session"})


async def test_one_user_may_pool_and_another_not(pooled: Pooled) -> None:
    await pooled.cluster.serve(pooled.server, 1)
    await pooled.cluster.start(pooling="transaction", pooling_by={"app@postgres": "session"})
    alone, shared = await pooled.connect(dbname="postgres"), await pooled.connect()
    await alone.execute("select 1")
    await shared.execute("select 1")
    assert [p["database"] for p in pooled.pools()] == ["app"]


async def test_a_lost_idle_connection_is_replaced(pooled: Pooled) -> None:
    await pooled.start(1)
    client = await pooled.connect()
    pid = await pooled.backend(client)
    pooled.server.query(f"select pg_terminate_backend({pid})")
    await until(lambda: pooled.pools()[0]["open"] == 0)
    assert await pooled.backend(client) != pid


async def test_a_failover_is_a_wait(cluster: Cluster, make_server: ServerMaker) -> None:
    """Clients between transactions notice nothing, the rest is told the truth; prepared statements are made anew."""
    n1 = await asyncio.to_thread(make_server, "n1")
    n2 = await asyncio.to_thread(make_server, "n2", n1)
    await asyncio.to_thread(n1.wait_for, "select exists (select from pg_stat_replication where state = 'streaming')")
    await cluster.serve(n1, 1)
    await cluster.record(n2, NodeState.STANDBY, 1)
    pair = Pair(cluster, n1, n2, await cluster.start(pooling="transaction", pool_size=3))
    clients = [await cluster.connect() for _ in range(30)]
    for _ in range(7):
        await asyncio.gather(*(fetch(c, "select %s::int", 1) for c in clients))
    await clients[0].set_autocommit(False)
    await clients[0].execute("select 1")
    await clients[1].execute("set work_mem = '9MB'")
    await pair.fail_over()
    waiting = [asyncio.create_task(fetch(c, "select %s::int", n)) for n, c in enumerate(clients[2:])]
    assert await asyncio.gather(*waiting) == list(range(28))
    with pytest.raises(psycopg.errors.AdminShutdown):
        await clients[0].execute("select 1")
    await clients[0].rollback()
    assert await fetch(clients[1], "show work_mem") == "9MB"
    assert n2.query("select count(*) from pg_stat_activity where usename = 'app'") == [(3,)]
    for connection in clients:
        await connection.close()
