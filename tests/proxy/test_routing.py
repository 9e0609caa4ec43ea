"""Which server a session is on: only the one that the register names, of its epoch."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psycopg
import pytest

from holdfast.model.register import NodeState
from holdfast.proxy.lane import Purpose
from tests.proxy.cluster import Cluster, Pair, fetch, member, until, wait_until_active
from tests.proxy.conftest import ServerMaker
from tests.proxy.servers import Server

pytestmark = pytest.mark.live


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
