"""What shared connections must not pass on, and what must not get lost with them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from holdfast.model.register import NodeRecord, NodeState
from holdfast.wire import messages as m
from tests.proxy.cluster import KEYS, Cluster, fetch, member, until
from tests.proxy.conftest import with_oldest_and_newest
from tests.proxy.servers import PASSWORD, USER, Server
from tests.proxy.test_pooling import Pooled

pytestmark = pytest.mark.live

_CANCEL = (1234 << 16) | 5678


class Raw:
    """A client that speaks bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.key = b""
        self.parameters: dict[str, str] = {}

    @classmethod
    async def open(cls, pooled: Pooled) -> Raw:
        raw = cls(*await asyncio.open_connection("127.0.0.1", pooled.cluster.write_port))
        raw.writer.write(m.startup_message({"user": USER, "database": "app"}))
        for kind, body in await raw.until(m.READY_FOR_QUERY):
            if kind == m.BACKEND_KEY_DATA:
                raw.key = body
            elif kind == m.PARAMETER_STATUS:
                name, value = m.read_parameter_status(body)
                raw.parameters[name] = value
        return raw

    async def until(self, kind: int) -> list[tuple[int, bytes]]:
        seen: list[tuple[int, bytes]] = []
        async with asyncio.timeout(20):
            while not seen or seen[-1][0] != kind:
                head = await self._reader.readexactly(5)
                seen.append((head[0], await self._reader.readexactly(int.from_bytes(head[1:], "big") - 4)))
        return seen

    async def ask(self, sql: str) -> list[tuple[int, bytes]]:
        self.writer.write(m.query(sql))
        return await self.until(m.READY_FOR_QUERY)


@pytest_asyncio.fixture
async def pooled(cluster: Cluster, lasting: Server) -> AsyncIterator[Pooled]:
    made = Pooled(cluster, lasting)
    yield made
    await made.close()


async def copying(pooled: Pooled) -> Raw:
    """A client in the middle of COPY FROM."""
    raw = await Raw.open(pooled)
    await raw.ask("create table if not exists copied (a int)")
    raw.writer.write(m.query("copy copied from stdin"))
    await raw.until(m.COPY_IN)
    return raw


async def test_a_copy_that_fails_in_the_middle_of_a_message_hurts_nobody_else(pooled: Pooled) -> None:
    await pooled.start(1, auth="trust")
    first, second = await copying(pooled), await Raw.open(pooled)
    half = m.message(m.COPY_DATA, b"x" * 600_000)[:300_000]
    first.writer.write(m.message(m.COPY_DATA, b"no number\n" * 20_000) + half)
    assert m.ERROR in [kind for kind, _ in await first.until(m.READY_FOR_QUERY)]
    assert m.DATA_ROW in [kind for kind, _ in await second.ask("select 42")]
    first.writer.write(b"x" * 300_005)
    assert m.DATA_ROW in [kind for kind, _ in await first.ask("select 43")]
    for raw in (first, second):
        raw.writer.close()


async def test_a_client_that_goes_in_the_middle_of_a_message_leaves_nothing_behind(pooled: Pooled) -> None:
    await pooled.start(1, auth="trust")
    raw = await copying(pooled)
    raw.writer.write(m.message(m.COPY_DATA, b"1\n" * 300_000)[:400_000])
    await raw.writer.drain()
    raw.writer.close()
    await until(lambda: all(pool["open"] == 0 for pool in pooled.pools()))
    assert pooled.inside() == 0


async def test_a_client_that_goes_between_two_messages_of_a_copy_leaves_nothing_behind(pooled: Pooled) -> None:
    await pooled.start(1, auth="trust")
    raw = await copying(pooled)
    raw.writer.write(m.message(m.COPY_DATA, b"1\n"))
    await raw.writer.drain()
    raw.writer.close()
    await until(lambda: all(pool["open"] == 0 for pool in pooled.pools()) and pooled.inside() == 0)
    assert pooled.server.query("select count(*) from copied", "app") == [(0,)]


async def test_a_client_that_was_held_back_in_a_copy_goes_on_after_it_failed(pooled: Pooled) -> None:
    await pooled.start(1, auth="trust")
    raw = await copying(pooled)
    raw.writer.write(m.message(m.COPY_DATA, b"no number\n") + m.message(m.COPY_DATA, b"1\n" * 30_000) * 400)
    await raw.until(m.READY_FOR_QUERY)
    raw.writer.write(m.message(m.COPY_FAIL, b"\0"))
    assert m.DATA_ROW in [kind for kind, _ in await raw.ask("select 43")]
    raw.writer.close()


async def test_the_order_of_settings_counts(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    await first.execute("set role pg_signal_backend")
    await first.execute("set session authorization app")
    await second.execute("set session authorization app")
    await second.execute("set role pg_signal_backend")
    for _ in range(2):
        assert await fetch(first, "select current_user") == "app"
        assert await fetch(second, "select current_user") == "pg_signal_backend"


async def test_settings_of_the_same_name_that_are_about_different_things(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    await first.execute("set session characteristics as transaction isolation level serializable")
    await first.execute("set session characteristics as transaction read write")
    await second.execute("set work_mem = '5MB'")
    assert await fetch(first, "show default_transaction_isolation") == "serializable"


async def test_a_login_is_told_of_nobody_elses_settings(pooled: Pooled) -> None:
    await pooled.start(2, auth="trust")
    first = await Raw.open(pooled)
    await first.ask("set client_encoding = 'latin1'; set timezone = 'Asia/Tokyo'")
    second = await Raw.open(pooled)
    assert second.parameters["client_encoding"] == "UTF8"
    assert second.parameters["TimeZone"] != "Asia/Tokyo"
    for raw in (first, second):
        raw.writer.close()


async def test_locks_and_settings_are_seen_also_if_not_all_rows_are_fetched(pooled: Pooled) -> None:
    """asyncpg asks for one row, so that the statement is suspended, not complete."""
    await pooled.start(2)
    options: dict[str, Any] = {"user": USER, "password": PASSWORD, "database": "app", "ssl": False}
    port = pooled.cluster.write_port
    first, second = [await asyncpg.connect(host="127.0.0.1", port=port, **options) for _ in range(2)]
    try:
        assert await first.fetchval("select set_config('work_mem', '9MB', false)") == "9MB"
        assert await second.fetchval("show work_mem") == "4MB"
        assert await first.fetchval("show work_mem") == "9MB"
        assert await first.fetchval("select pg_try_advisory_lock(77)") is True
        assert await second.fetchval("select pg_try_advisory_lock(77)") is False
    finally:
        await first.close()
        await second.close()


async def test_a_lock_that_was_taken_by_a_statement_that_failed_is_kept(pooled: Pooled) -> None:
    await pooled.start(1)
    owner = await pooled.connect()
    with pytest.raises(psycopg.errors.DivisionByZero):
        await owner.execute("select pg_advisory_lock(78), 1 / (random() * 0)::int")
    assert pooled.pools()[0]["idle"] == 0
    await owner.execute("select pg_advisory_unlock_all()")
    await owner.execute("discard all")
    assert pooled.pools()[0]["idle"] == 1


async def test_one_text_is_another_statement_where_settings_differ(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    await first.execute("set timezone = 'UTC'")
    await second.execute("set timezone = 'Asia/Tokyo'")
    sql = "select extract(epoch from timestamptz '2020-01-01 00:00')::bigint + %s::int"

    async def ask(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> tuple[Any, ...] | None:
        return await (await connection.execute(sql, [0], prepare=True)).fetchone()

    assert [await ask(first), await ask(second)] == [(1577836800,), (1577804400,)]
    assert [await ask(first), await ask(second)] == [(1577836800,), (1577804400,)]
    async with first.transaction():
        await first.execute("set local timezone = 'Asia/Tokyo'")
        assert await (await first.execute(f"{sql} + 0", [0], prepare=True)).fetchone() == (1577804400,)
    third = await pooled.connect()
    await third.execute("set timezone = 'UTC'")
    assert await (await third.execute(f"{sql} + 0", [0], prepare=True)).fetchone() == (1577836800,)


@with_oldest_and_newest
async def test_a_statement_whose_columns_have_changed_is_refused_once(pooled: Pooled) -> None:
    await pooled.start(2)
    clients = [await pooled.connect() for _ in range(3)]
    holder, *others = clients
    await holder.execute("create table altered (a int)")
    sql = "select * from altered"

    async def ask() -> list[int]:
        """How many columns each of the others gets, on both connections."""
        columns = []
        for is_held in (False, True):
            if is_held:
                await holder.execute("begin")
                await holder.execute("select 1")
            for client in others:
                columns.append(len((await client.execute(sql, prepare=True)).description or ()))
            if is_held:
                await holder.execute("commit")
        return columns

    try:
        assert await ask() == await ask() == [1] * 4
        await holder.execute("alter table altered add b int")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
            await others[0].execute(sql, prepare=True)
        assert await ask() == await ask() == [2] * 4
    finally:
        await holder.execute("drop table altered")


async def test_tables_of_one_name_in_two_schemas(pooled: Pooled) -> None:
    await pooled.start(1)
    first, second = await pooled.connect(), await pooled.connect()
    await first.execute("create schema one; create schema two; create table one.t (a int); create table two.t (a text)")
    try:
        await first.execute("set search_path = one")
        await second.execute("set search_path = two")
        for _ in range(2):
            await first.execute("select * from t", prepare=True)
            await second.execute("select * from t", prepare=True)
    finally:
        await first.execute("drop schema one, two cascade")


async def test_a_cancel_whose_sender_hangs_up_is_passed_on(pooled: Pooled) -> None:
    await pooled.start(1, auth="trust")
    raw = await Raw.open(pooled)
    raw.writer.write(m.query("select pg_sleep(60)"))
    await until(lambda: bool(pooled.pools()) and pooled.pools()[0]["open"] > pooled.pools()[0]["idle"])
    asleep = "select exists (select from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active')"
    await asyncio.to_thread(pooled.server.wait_for, asleep)
    _, canceller = await asyncio.open_connection("127.0.0.1", pooled.cluster.write_port)
    canceller.write(struct.pack("!II", 8 + len(raw.key), _CANCEL) + raw.key)
    canceller.close()
    assert m.ERROR in [kind for kind, _ in await raw.until(m.READY_FOR_QUERY)]
    raw.writer.close()


async def test_a_pinned_session_stays_where_it_is_when_its_agent_moves(pooled: Pooled) -> None:
    await pooled.start(2)
    owner = await pooled.connect()
    await owner.execute("create temp table mine as select 7 as kept")
    register = pooled.cluster.register
    assert register is not None
    await pooled.cluster.write(register.handing_over("n2"))
    waiting = asyncio.create_task(fetch(owner, "select kept from mine"))
    await until(lambda: pooled.held() == 1)
    server = pooled.server
    moved = NodeRecord(member(server.name), NodeState.PRIMARY, 1, "127.0.0.1", server.port, "http://127.0.0.1:2")
    await pooled.cluster.store.put(KEYS.node(server.name), moved.to_json())
    await pooled.cluster.write(register.handing_over("n2").handing_over(None))
    assert await waiting == 7


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_what_was_sent_together_with_a_goodbye_still_runs(pooled: Pooled, pooling: str) -> None:
    await pooled.cluster.serve(pooled.server, 1)
    await pooled.cluster.start(pooling=pooling, auth="trust")
    raw = await Raw.open(pooled)
    await raw.ask(f"create table last_words_{pooling} (a int)")
    raw.writer.write(m.query(f"insert into last_words_{pooling} values (1)") + m.TERMINATE_MESSAGE)
    count = f"select count(*) = 1 from last_words_{pooling}"
    await until(lambda: pooled.server.query(count, "app") == [(True,)])
    raw.writer.close()


async def test_who_is_refused_a_new_connection_takes_one_that_is_given_back(pooled: Pooled) -> None:
    await pooled.start(2)
    first, second = await pooled.connect(), await pooled.connect()
    pooled.server.query(f"alter role {USER} connection limit 1")
    try:
        async with first.transaction():
            pid = await pooled.backend(first)
            waiting = asyncio.create_task(pooled.backend(second))
            await until(lambda: pooled.held() == 1)
        async with asyncio.timeout(10):  # half of what a statement is held for
            assert await waiting == pid
    finally:
        pooled.server.query(f"alter role {USER} connection limit -1")
    assert [(p["open"], p["idle"], p["waiting"]) for p in pooled.pools()] == [(1, 1, 0)]
