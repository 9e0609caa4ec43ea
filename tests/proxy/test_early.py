"""Whoever waits for a primary is logged in at the candidate while it is promoted, and runs nothing there before."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.cluster import Pair, fetch, member, until

pytestmark = pytest.mark.live

SESSIONS = "select pid, query from pg_stat_activity where usename = 'app' and backend_type = 'client backend'"


async def choose(pair: Pair, name: str) -> None:
    assert pair.cluster.register is not None
    await pair.cluster.write(pair.cluster.register.chosen(member(name)))


async def sessions(pair: Pair, count: int) -> list[tuple[int, str]]:
    """The sessions at the standby, once there are so many."""
    found: list[tuple[int, str]] = []

    def are_there() -> bool:
        nonlocal found
        found = [(row[0], row[1]) for row in pair.n2.query(SESSIONS)]
        return len(found) == count

    await until(lambda: asyncio.to_thread(are_there))
    return found


async def test_who_waits_is_logged_in_before_the_candidate_serves(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await pair.lose_primary()
        running = asyncio.create_task(fetch(connection, "select pg_backend_pid()"))
        await pair.wait_until_held(1)
        await choose(pair, "n2")
        ((pid, said),) = await sessions(pair, 1)
        assert said == ""  # logged in, and nothing else
        assert pair.n2.query("select pg_is_in_recovery()") == [(True,)]
        await pair.promote()
        assert await running == pid
        assert await fetch(connection, "show transaction_read_only") == "off"


async def test_another_candidate_ends_it(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await pair.lose_primary()
        running = asyncio.create_task(fetch(connection, "select 1"))
        await pair.wait_until_held(1)
        await choose(pair, "n2")
        ((first, _),) = await sessions(pair, 1)
        await pair.cluster.open_epoch()
        await sessions(pair, 0)
        await choose(pair, "n2")  # again, in a later epoch: whoever was logged in for the former is not
        ((second, _),) = await sessions(pair, 1)
        assert first != second
        await pair.cluster.open_epoch()
        await sessions(pair, 0)
        assert not running.done()
        running.cancel()


async def test_a_client_that_goes_leaves_none(pair: Pair) -> None:
    connection = await pair.cluster.connect()
    await pair.lose_primary()
    running = asyncio.create_task(connection.execute("select 1"))
    await pair.wait_until_held(1)
    await choose(pair, "n2")
    await sessions(pair, 1)
    connection.pgconn.finish()
    running.cancel()
    await sessions(pair, 0)


async def test_a_candidate_that_lets_nobody_in_costs_nothing(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await asyncio.to_thread(pair.n2.stop)
        await pair.lose_primary()
        running = asyncio.create_task(fetch(connection, "select 7"))
        await pair.wait_until_held(1)
        await choose(pair, "n2")
        await until(lambda: pair.proxy.routing.candidate() is not None)
        await asyncio.to_thread(pair.n2.start)
        await pair.promote()
        assert await running == 7


async def test_who_does_not_wait_is_not_logged_in(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await fetch(connection, "select 1")
        await pair.lose_primary()
        await choose(pair, "n2")
        await until(lambda: pair.proxy.routing.candidate() is not None)
        await pair.promote()
        assert pair.n2.query(SESSIONS) == []
