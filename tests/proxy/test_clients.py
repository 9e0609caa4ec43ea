"""Usual clients do their usual work through both ports."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa

from tests.proxy.cluster import Cluster, fetch, until
from tests.proxy.conftest import with_oldest_and_newest
from tests.proxy.servers import PASSWORD, USER

pytestmark = [pytest.mark.live, with_oldest_and_newest]


async def run_program(program: Path, *arguments: str, stdin: str | None = None) -> str:
    environment = {**os.environ, "PGPASSWORD": PASSWORD, "PGCONNECT_TIMEOUT": "30"}
    process = await asyncio.create_subprocess_exec(
        str(program), *arguments, env=environment, stdin=-1, stdout=-1, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate(stdin.encode() if stdin is not None else None)
    assert process.returncode == 0, output.decode()
    return output.decode()


def ports(cluster: Cluster) -> tuple[int, int]:
    return cluster.write_port, cluster.read_port


@pytest.mark.parametrize("read", [False, True])
async def test_psql(served: Cluster, bin_dir: Path, read: bool) -> None:
    port = str(ports(served)[read])
    script = "select 1 as one;\n\\d pgbench_accounts\nbegin; select count(*) from pgbench_branches; commit;\nselect 2;"
    output = await run_program(bin_dir / "psql", "-h", "127.0.0.1", "-p", port, "-U", USER, "-d", "app", stdin=script)
    assert "Indexes:" in output
    assert "COMMIT" in output


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
@pytest.mark.parametrize("script", ["select-only", "tpcb-like"])
async def test_pgbench(served: Cluster, bin_dir: Path, mode: str, script: str) -> None:
    shared = ["-h", "127.0.0.1", "-U", USER, "-n", "-M", mode, "-c", "4", "-t", "50", "-b", script]
    output = await run_program(bin_dir / "pgbench", *shared, "-p", str(served.write_port), "app")
    assert "number of failed transactions: 0" in output
    assert "processed: 200/200" in output
    if script == "select-only":
        output = await run_program(bin_dir / "pgbench", *shared, "-p", str(served.read_port), "app")
        assert "processed: 200/200" in output


@pytest.mark.parametrize("read", [False, True])
async def test_psycopg(served: Cluster, read: bool) -> None:
    async with await psycopg.AsyncConnection.connect(served.dsn(read=read)) as connection:
        for _ in range(8):  # prepared by the driver after five
            assert await fetch(connection, "select %s::int + 1", 41) == 42
        async with connection.pipeline():
            cursors = [await connection.execute("select %s::int", [n]) for n in range(20)]
            assert [(await cursor.fetchone()) for cursor in cursors] == [(n,) for n in range(20)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("select 1/0")
        await connection.rollback()
        assert await fetch(connection, "show server_version") == connection.info.parameter_status("server_version")


async def test_psycopg_writes(served: Cluster) -> None:
    async with await psycopg.AsyncConnection.connect(served.dsn()) as connection:
        await connection.execute("create table t_psycopg (n int primary key)")
        async with connection.transaction():
            await connection.execute("insert into t_psycopg values (1)")
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with connection.transaction():
                    await connection.execute("insert into t_psycopg values (1)")
            await connection.execute("insert into t_psycopg values (2)")
        assert await fetch(connection, "select count(*) from t_psycopg") == 2
        await connection.execute("drop table t_psycopg")


async def connect_asyncpg(port: int) -> Any:
    return await asyncpg.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, database="app")


@pytest.mark.parametrize("read", [False, True])
async def test_asyncpg(served: Cluster, read: bool) -> None:
    connection = await connect_asyncpg(ports(served)[read])
    try:
        assert await connection.fetchval("select $1::int + 1", 41) == 42
        statement = await connection.prepare("select generate_series(1, $1::int)")
        assert len(await statement.fetch(1000)) == 1000
        async with connection.transaction():
            rows = [row[0] async for row in connection.cursor("select generate_series(1, 500)", prefetch=50)]
        assert rows == list(range(1, 501))
        assert await connection.fetchval("select '{a,b}'::text[]") == ["a", "b"]
        await connection.reset()
        assert await connection.fetchval("select 1") == 1
    finally:
        await connection.close()


async def test_asyncpg_copies(served: Cluster) -> None:
    connection = await connect_asyncpg(served.write_port)
    try:
        await connection.execute("create table t_asyncpg (n int, s text)")
        rows = [(n, "x" * (n % 100)) for n in range(5000)]
        assert await connection.copy_records_to_table("t_asyncpg", records=rows) == "COPY 5000"
        with pytest.raises(asyncpg.UndefinedColumnError):
            await connection.copy_records_to_table("t_asyncpg", records=rows, columns=["n", "absent"])
        await connection.executemany("insert into t_asyncpg values ($1, $2)", rows[:100])
        assert await connection.fetchval("select count(*) from t_asyncpg") == 5100
        await connection.execute("drop table t_asyncpg")
    finally:
        await connection.close()


async def test_sqlalchemy(served: Cluster) -> None:
    await asyncio.to_thread(work_with_sqlalchemy, *ports(served))


def work_with_sqlalchemy(write_port: int, read_port: int) -> None:
    engines = [
        sa.create_engine(sa.URL.create("postgresql+psycopg", USER, PASSWORD, "127.0.0.1", port, "app"))
        for port in (write_port, read_port)
    ]
    table = sa.Table("t_sa", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))
    try:
        table.metadata.create_all(engines[0])
        with engines[0].begin() as connection:
            connection.execute(table.insert(), [{"n": n} for n in range(100)])
        with engines[1].connect() as connection:
            assert connection.scalar(sa.select(sa.func.sum(table.c.n))) == 4950
        table.metadata.drop_all(engines[0])
    finally:
        for engine in engines:
            engine.dispose()


async def test_read_port_writes_nothing(served: Cluster) -> None:
    """No standby here, so reads land on the primary: read only."""
    async with await served.connect(read=True) as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await connection.execute("create table nothing ()")
        assert await fetch(connection, "select count(*) from pgbench_branches") == 2


async def test_cancel(served: Cluster) -> None:
    async with await served.connect() as connection:
        running = asyncio.create_task(connection.execute("select pg_sleep(60)"))
        async with await served.connect() as watcher:
            seen = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'"

            async def is_running() -> bool:
                return bool(await fetch(watcher, seen))

            await until(is_running)
        await connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running
        assert await fetch(connection, "select 1") == 1


async def test_copy(served: Cluster) -> None:
    async with await served.connect() as connection:
        await connection.execute("create table t_copy (n int, s text)")
        cursor = connection.cursor()
        async with cursor.copy("copy t_copy from stdin") as copy:
            for n in range(20_000):
                await copy.write_row((n, "y" * 50))
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            async with cursor.copy("copy t_copy from stdin") as copy:
                await copy.write(b"1\tx\nnot a number\tx\n")
        total = 0
        async with cursor.copy("copy t_copy to stdout") as copy:
            async for block in copy:
                total += len(block)
        assert total > 20_000 * 50
        assert await fetch(connection, "select count(*) from t_copy") == 20_000
        await connection.execute("drop table t_copy")


async def test_slow_reader_is_not_buffered(served: Cluster) -> None:
    """400 MB to a client that does not read: the server is no longer read, and the proxy keeps next to nothing."""
    async with await served.connect() as connection:
        connection.pgconn.send_query(b"select repeat('x', 1000000) from generate_series(1, 400)")
        connection.pgconn.flush()
        assert served.proxy is not None
        relay = next(iter(served.proxy._relays.values()))
        paused = asyncio.Event()
        original = relay.client_busy

        def watched(busy: bool) -> None:
            original(busy)
            if busy:
                paused.set()

        relay.client_busy = watched  # type: ignore[method-assign]
        await asyncio.wait_for(paused.wait(), 120)
        assert relay._client._transport is not None
        assert relay._client._transport.get_write_buffer_size() < 4 * 1024 * 1024
        rows = 0
        while (result := await next_result(connection)) is not None:
            rows += result.ntuples
        assert rows == 400


async def next_result(connection: psycopg.AsyncConnection[Any]) -> psycopg.pq.abc.PGresult | None:
    loop = asyncio.get_running_loop()
    while connection.pgconn.is_busy():
        readable = asyncio.Event()
        loop.add_reader(connection.pgconn.socket, readable.set)
        await readable.wait()
        loop.remove_reader(connection.pgconn.socket)
        connection.pgconn.consume_input()
    return connection.pgconn.get_result()
