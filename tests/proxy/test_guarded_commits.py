"""Guarded commits on a real server: what an application does in its session, the guard outlives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from holdfast.model.policy import DEFAULT_POLICY
from holdfast.proxy.lane import Purpose
from tests.proxy.cluster import KEYS, Cluster, fetch, until
from tests.proxy.conftest import with_oldest_and_newest
from tests.proxy.servers import Server

pytestmark = pytest.mark.live

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@pytest.fixture(params=["session", "transaction"])
async def guarded(cluster: Cluster, lasting: Server, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """A running proxy that guards commits, in front of the lasting primary."""
    await cluster.serve(lasting, 1)
    await cluster.store.put(KEYS.policy, DEFAULT_POLICY.changed({"commit_guard": True}).to_json())
    proxy = await cluster.start(pooling=request.param, pool_size=1)
    await until(lambda: proxy.lanes[Purpose.WRITE].guard.is_on)
    lasting.query("drop table if exists guarded; create table guarded (n int); grant all on guarded to app", "app")
    lasting.query(
        "create or replace function forgets() returns int language plpgsql as "
        "$$ begin execute 'deallocate all'; return 1; end $$; "
        "create or replace function forgets_too() returns trigger language plpgsql as "
        "$$ begin execute 'deallocate all'; return new; end $$",
        "app",
    )
    yield cluster
    lasting.query("drop table guarded; drop function forgets, forgets_too", "app")


async def write(connection: Connection, way: str, number: int) -> None:
    """One transaction with one row."""
    plain = b"insert into guarded values (%d)" % number
    match way:
        case "query":
            await connection.execute(plain)
        case "execute":
            await connection.execute("insert into guarded values (%s)", (number,))
        case "block":
            await connection.execute("begin")
            await connection.execute(plain)
            await connection.execute("commit")
        case _:
            await connection.execute("begin")
            await connection.execute(plain)
            await connection.execute("select forgets()")
            await connection.execute("commit", binary=True)  # by the extended protocol


@with_oldest_and_newest
@pytest.mark.parametrize("forget", ["select forgets()", "do $$ begin execute 'deallocate all'; end $$"])
@pytest.mark.parametrize("way", ["query", "execute", "block", "block that forgets"])
async def test_a_function_that_deallocates_everything_fails_no_commit(guarded: Cluster, forget: str, way: str) -> None:
    assert guarded.proxy is not None
    guard = guarded.proxy.lanes[Purpose.WRITE].guard
    async with await guarded.connect() as connection:
        connection.prepare_threshold = None  # its own would be gone, too
        for number in range(3):
            await write(connection, way, number)
            await connection.execute(forget.encode())
        await write(connection, way, 3)
        assert await fetch(connection, "select count(*) from guarded") == 4
    assert guard.commits == 4


@pytest.mark.parametrize("way", ["query", "execute", "block"])
async def test_nor_does_a_trigger_of_the_statement_itself(guarded: Cluster, lasting: Server, way: str) -> None:
    lasting.query("create trigger forgets before insert on guarded for each row execute function forgets_too()", "app")
    async with await guarded.connect() as connection:
        connection.prepare_threshold = None  # its own would be gone, too
        for number in range(3):
            await write(connection, way, number)
        assert await fetch(connection, "select count(*) from guarded") == 3
