"""Reads that say how old their answers may be are answered while the database cannot be asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import psycopg
import pytest

from holdfast.model.policy import DEFAULT_POLICY
from holdfast.proxy.lane import Lane, Purpose
from holdfast.wire.fingerprint import fingerprint
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until
from tests.proxy.servers import PASSWORD, USER, Server

pytestmark = pytest.mark.live
READ = "/* holdfast: stale=300 */ select price from goods where id = 1"
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Shop:
    """A proxy that keeps answers, and a table; ``close`` announces a switchover, which ``open`` takes back."""

    def __init__(self, cluster: Cluster, server: Server) -> None:
        self.cluster = cluster
        self.server = server
        self.notices: list[str] = []

    async def begin(self, *, pooling: str = "session", hold_max_ms: int = 300, **policy: Any) -> None:
        self.server.query("drop table if exists goods; create table goods as select 1 as id, 10 as price", "app")
        self.server.query(f"grant all on goods to {USER}", "app")
        await self.cluster.serve(self.server, 1)
        await self.cluster.start(pooling=pooling, hold_max_ms=hold_max_ms)
        await self.rule(stale_answers_mib=8, **policy)

    async def rule(self, **policy: Any) -> None:
        wanted = DEFAULT_POLICY.changed(policy)
        await self.cluster.store.put(KEYS.policy, wanted.to_json())
        await until(lambda: self.cluster.proxy is not None and self.cluster.proxy.routing.policy == wanted)

    async def connect(self, **more: Any) -> Connection:
        connection = await self.cluster.connect(**more)
        connection.add_notice_handler(lambda notice: self.notices.append(f"{notice.sqlstate} {notice.message_primary}"))
        return connection

    async def close(self) -> None:
        await self._hand_over("n2")

    async def open(self) -> None:
        await self._hand_over(None)

    async def _hand_over(self, to: str | None) -> None:
        register = self.cluster.register
        assert register is not None
        await self.cluster.write(replace(register, handover=to))
        await until(lambda: self.lane.routing.is_handing_over() is (to is not None))

    @property
    def lane(self) -> Lane:
        assert self.cluster.proxy is not None
        return self.cluster.proxy.lanes[Purpose.WRITE]

    @property
    def given(self) -> int:
        return self.lane.stale.given


@pytest.fixture
def shop(cluster: Cluster, lasting: Server) -> Shop:
    return Shop(cluster, lasting)


async def refused(connection: Connection, sql: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        await connection.execute(sql.encode())


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_while_no_primary_serves_a_read_that_says_so_gets_the_last_answer(shop: Shop, pooling: str) -> None:
    await shop.begin(pooling=pooling)
    async with await shop.connect() as one, await shop.connect(application_name="another") as two:
        assert await fetch(one, READ) == 10
        assert shop.notices == []
        shop.server.query("update goods set price = 11", "app")
        await shop.close()
        for connection in (one, two):
            assert await fetch(connection, READ) == 10
        assert [notice[:21] for notice in shop.notices] == ["01000 this answer is "] * 2
        await refused(one, "select price from goods where id = 1")
        await refused(one, READ.replace("id = 1", "id = 2"))
        await refused(one, "/* holdfast: stale=300 */ update goods set price = 12")
        assert await fetch(one, READ) == 10
        await shop.open()
        assert await fetch(one, READ) == 11
    assert shop.given == 3


async def test_it_is_the_answer_of_the_same_user_with_the_same_settings(shop: Shop) -> None:
    await shop.begin()
    shop.server.query("grant all on goods to public", "app")
    async with await shop.connect() as one, await shop.connect() as two:
        await two.execute("set datestyle = 'German'")
        other = await shop.connect(user="trusted", password="anything")
        assert await fetch(one, READ) == 10
        await shop.close()
        for connection in (two, other):
            await refused(connection, READ)
        await other.close()
        assert await fetch(one, READ) == 10


async def test_an_answer_that_is_too_old_is_not_given(shop: Shop) -> None:
    await shop.begin(stale_by={fingerprint(b"select price from goods").id: 300})
    async with await shop.connect() as one:
        assert await fetch(one, "/* holdfast: stale=1 */ select id from goods") == 1
        assert await fetch(one, "select price from goods") == 10
        await shop.close()
        await asyncio.sleep(1.01)  # time passes for the answer alone
        await refused(one, "/* holdfast: stale=1 */ select id from goods")
        assert await fetch(one, "select price from goods") == 10, "by rule, with nothing in its text"


async def test_in_a_transaction_nothing_old_is_said(shop: Shop) -> None:
    await shop.begin()
    async with await shop.connect() as one, await shop.connect() as two:
        assert await fetch(one, READ) == 10
        await two.execute("begin")
        assert await fetch(two, READ) == 10
        await shop.close()
        assert await fetch(two, READ) == 10, "from the server: transactions under way go on"
        assert shop.notices == []
        await two.execute("rollback")
    assert shop.given == 0


PRICE = "/* holdfast: stale=300 */ select price + $1::int from goods"


async def prepared(shop: Shop) -> tuple[asyncpg.Connection, asyncpg.prepared_stmt.PreparedStatement]:
    where = {"host": "127.0.0.1", "port": shop.cluster.write_port, "database": "app"}
    one = await asyncpg.connect(**where, user=USER, password=PASSWORD)
    return one, await one.prepare(PRICE)


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_statements_that_are_prepared_by_name_go_on_afterwards(shop: Shop, pooling: str) -> None:
    await shop.begin(pooling=pooling)
    one, price = await prepared(shop)
    for _ in range(2):  # the first one is in the middle of the batch that prepares it
        assert await price.fetch(1) == [(11,)]
    shop.server.query("update goods set price = 20", "app")
    await shop.close()
    assert await price.fetch(1) == [(11,)]
    with pytest.raises(asyncpg.CannotConnectNowError):
        await price.fetch(2)
    await shop.open()
    assert await price.fetch(1) == [(21,)]
    assert shop.given == 1
    await one.close()


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_statements_without_a_name(shop: Shop, pooling: str) -> None:
    await shop.begin(pooling=pooling)
    async with await shop.connect() as one:
        assert await fetch(one, PRICE.replace("$1::int", "%s"), 5) == 15
        await shop.close()
        assert await fetch(one, PRICE.replace("$1::int", "%s"), 5) == 15
        with pytest.raises(psycopg.OperationalError):
            await fetch(one, PRICE.replace("$1::int", "%s"), 6)
        await shop.open()
        assert await fetch(one, PRICE.replace("$1::int", "%s"), 6) == 16
    assert shop.given == 1


async def test_where_a_server_is_attached_it_is_asked_if_the_statement_has_no_name(shop: Shop) -> None:
    """It would not have the unnamed statement that comes after it."""
    await shop.begin(statements_max=1, classes={"normal": {"queue_max": 0}})
    async with await shop.connect() as one, await shop.connect() as two:
        assert await fetch(two, PRICE.replace("$1::int", "%s"), 5) == 15
        await one.execute("begin")
        with pytest.raises(psycopg.errors.TooManyConnections):
            await fetch(two, PRICE.replace("$1::int", "%s"), 5)
        await one.execute("rollback")
        assert await fetch(two, PRICE.replace("$1::int", "%s"), 5) == 15
    assert shop.given == 0


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_who_is_shed_or_waits_in_vain_gets_the_last_answer(shop: Shop, pooling: str) -> None:
    classes: dict[str, Any] = {"normal": {"queue_max": 1, "wait_max_ms": 200}}
    await shop.begin(pooling=pooling, statements_max=1, classes=classes)
    async with await shop.connect() as one, await shop.connect() as two, await shop.connect() as three:
        assert await fetch(two, READ) == 10
        await one.execute("begin")
        gate = shop.lane.admission.gate
        waiting = asyncio.create_task(fetch(two, READ))
        await until(lambda: gate.waiting == 1 or waiting.done())
        assert await fetch(three, READ) == 10, "the queue is full"
        assert await waiting == 10, "it waited in vain"
        assert shop.given == 2
        assert len(shop.notices) == 2
        await one.execute("rollback")
        for connection in (two, three):
            assert await fetch(connection, "select 2") == 2


async def test_a_cancelled_statement_is_cancelled(shop: Shop) -> None:
    await shop.begin(statements_max=1)
    async with await shop.connect() as one, await shop.connect() as two:
        assert await fetch(two, READ) == 10
        await one.execute("begin")
        waiting = asyncio.create_task(fetch(two, READ))
        gate = shop.lane.admission.gate
        await until(lambda: gate.waiting == 1)
        await two.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await waiting
        await one.execute("rollback")


async def test_it_is_off_unless_asked_for(shop: Shop) -> None:
    await shop.begin()
    async with await shop.connect() as one:
        assert await fetch(one, READ) == 10
        await shop.rule(stale_answers_mib=0)
        await shop.close()
        await refused(one, READ)
        await shop.rule(stale_answers_mib=8)
        await refused(one, READ)
    assert shop.given == 0


async def test_where_the_primary_fails_one_statement_tries_and_the_others_need_not_wait(pair: Pair) -> None:
    policy = DEFAULT_POLICY.changed({"stale_answers_mib": 8})
    await pair.cluster.store.put(KEYS.policy, policy.to_json())
    await until(lambda: pair.proxy.routing.policy == policy)
    stale = pair.proxy.lanes[Purpose.WRITE].stale
    async with await pair.cluster.connect() as one, await pair.cluster.connect() as two:
        await one.execute("create table priced as select 10 as price")
        read = "/* holdfast: stale=300 */ select price from priced"
        assert await fetch(one, read) == 10
        await asyncio.to_thread(pair.n1.kill)
        trying = asyncio.create_task(fetch(one, read))
        await pair.wait_until_held(1)
        assert await fetch(two, read) == 10
        assert (stale.given, trying.done()) == (1, False)
        await pair.cluster.open_epoch()
        await pair.promote()
        assert await trying == 10
        assert await fetch(two, read) == 10
    assert stale.given == 1
