"""When a switchover is announced, servers that nobody uses are let go; no client notices."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from holdfast.model.register import NodeState
from holdfast.proxy.lane import Purpose
from tests.proxy.cluster import KEYS, Pair, fetch, until, wait_until_active

pytestmark = pytest.mark.live

SESSIONS = "select count(*) from pg_stat_activity where usename = 'app'"
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def let_go(pair: Pair) -> int:
    return pair.proxy.lanes[Purpose.WRITE].counters.servers_let_go


async def announce(pair: Pair, epoch: int = 1) -> None:
    await pair.cluster.store.put(KEYS.announced, str(epoch).encode())


async def sessions_left(pair: Pair, count: int) -> None:
    await asyncio.to_thread(pair.n1.wait_for, SESSIONS.replace("count(*)", f"count(*) = {count}"))


async def test_an_unused_session_is_let_go_and_has_all_it_had_at_its_next_statement(pair: Pair) -> None:
    async with await pair.cluster.connect(options="-c statement_timeout=77s") as connection:
        pid = await fetch(connection, "select pg_backend_pid()")
        await connection.execute("set work_mem = '7MB'")
        await connection.execute("prepare by_sql (int) as select $1 + 1")
        await connection.execute("select %s::int * 2", [21], prepare=True)
        await announce(pair)
        await sessions_left(pair, 0)
        assert await fetch(connection, "show work_mem") == "7MB"
        assert await fetch(connection, "show statement_timeout") == "77s"
        assert await fetch(connection, "execute by_sql (41)") == 42
        assert await (await connection.execute("select %s::int * 2", [21], prepare=True)).fetchone() == (42,)
        assert await fetch(connection, "select pg_backend_pid()") != pid
        counters = pair.proxy.lanes[Purpose.WRITE].counters
        assert (counters.servers_let_go, counters.servers_lost, counters.transactions_lost) == (1, 0, 0)


@pytest.mark.parametrize(
    "holds",
    [
        "listen news",
        "create temp table t (n int)",
        "declare c cursor with hold for select 1",
        "select pg_advisory_lock(7)",
        "select set_config('work_mem', (7 * 1024)::text, false)",
        "begin",
    ],
)
async def test_a_session_that_another_server_could_not_have_is_kept(pair: Pair, holds: str) -> None:
    async with await pair.cluster.connect() as keeper, await pair.cluster.connect():
        await keeper.execute(holds.encode())
        pid = await fetch(keeper, "select pg_backend_pid()")
        await announce(pair)
        await until(lambda: let_go(pair) == 1)  # the other one, which came later
        await sessions_left(pair, 1)
        assert await fetch(keeper, "select pg_backend_pid()") == pid


async def test_what_runs_or_is_used_meanwhile_goes_on(pair: Pair) -> None:
    async with AsyncExitStack() as stack:
        running, used, unused = [await stack.enter_async_context(await pair.cluster.connect()) for _ in range(3)]
        pids = [await fetch(connection, "select pg_backend_pid()") for connection in (running, used)]
        answer = asyncio.create_task(fetch(running, "select pg_backend_pid() from pg_sleep(2)"))
        await wait_until_active(pair.n1, "select pg_backend_pid() from pg_sleep(2)")
        await announce(pair)
        while let_go(pair) < 1:
            assert await fetch(used, "select pg_backend_pid()") == pids[1]
        assert await answer == pids[0]
        assert await fetch(unused, "select 1") == 1
        assert let_go(pair) == 1


async def test_half_a_batch_is_in_use(pair: Pair) -> None:
    """A client that has not sent its Sync yet may be silent for long."""
    async with await pair.cluster.connect() as batching, await pair.cluster.connect():
        pid = await fetch(batching, "select pg_backend_pid()")
        async with batching.pipeline():
            cursor = await batching.execute("select pg_backend_pid()")
            batching.pgconn.send_flush_request()
            batching.pgconn.flush()
            await announce(pair)
            await until(lambda: let_go(pair) == 1)
            await sessions_left(pair, 1)
        assert await cursor.fetchone() == (pid,)


async def test_readers_and_the_announcement_of_another_epoch_are_left_alone(pair: Pair) -> None:
    async with await pair.cluster.connect(read=True) as reader, await pair.cluster.connect() as writer:
        pid = await fetch(reader, "select pg_backend_pid()")
        before = pair.proxy.routing.version
        await announce(pair, 2)
        await pair.cluster.record(pair.n1, NodeState.PRIMARY, 1)
        await until(lambda: pair.proxy.routing.version > before)  # by now it has seen the announcement, too
        assert await fetch(writer, "select 1") == 1  # were it obeyed, this would keep the server, for good
        await announce(pair, 1)
        await until(lambda: let_go(pair) == 1)
        assert await fetch(reader, "select pg_backend_pid()") == pid
        assert pair.proxy.lanes[Purpose.READ].counters.servers_let_go == 0


async def test_those_let_go_wait_in_a_switchover_as_all_do(pair: Pair) -> None:
    connections = [await pair.cluster.connect() for _ in range(30)]
    await announce(pair)
    await sessions_left(pair, 0)
    assert pair.cluster.register is not None
    await pair.cluster.write(replace(pair.cluster.register, handover="n2"))
    await until(lambda: pair.proxy.routing.is_handing_over())
    running = [asyncio.create_task(fetch(c, "select inet_server_port()")) for c in connections]
    await pair.wait_until_held(30)
    await asyncio.to_thread(pair.n1.stop)
    await pair.cluster.open_epoch()
    await pair.promote()
    assert await asyncio.gather(*running) == [pair.n2.port] * 30
    for connection in connections:
        await connection.close()
