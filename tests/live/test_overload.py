"""A primary that has more sessions than it can take is slow, not lost; one that a statement killed is lost once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from holdfast.core.admission.suspicion import LOOKS_MIN
from holdfast.local.cluster import LocalCluster
from holdfast.local.layout import remove
from holdfast.local.machine import server_user, temporary_root
from holdfast.local.orders import order
from holdfast.local.quarantine import read_suspects
from holdfast.model.report import VerdictKind
from holdfast.model.suspect import Standing
from holdfast.model.timeouts import Timeouts
from holdfast.proxy.quarantine import LOOK_S
from tests.live.conftest import connect, the_leader, the_register, until_whole
from tests.live.test_verdicts import wait_until_held
from tests.ports import next_window

pytestmark = pytest.mark.live

CONNECTIONS = 40


@pytest.fixture(scope="module")
def small() -> Iterator[Path]:
    """A cluster whose servers take few sessions."""
    parameters = {"max_connections": str(CONNECTIONS)}
    next_window()
    cluster = LocalCluster.create(temporary_root(3, server_user()), nodes=3, temporary=True, parameters=parameters)

    async def serve() -> None:
        await cluster.wait_until_serving(lambda step: None)
        await cluster.close()

    try:
        cluster.start()
        asyncio.run(serve())
        yield cluster.layout.root
    finally:
        asyncio.run(cluster.stop())
        remove(cluster.layout)


async def test_a_primary_that_lets_nobody_in_for_want_of_room_is_overloaded(small: Path) -> None:
    cluster = LocalCluster.open(small)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await until_whole(cluster)
        before, leader = await the_register(cluster), await the_leader(cluster)
        dsn = await cluster.direct_dsn(leader)
        crowd: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
        with contextlib.suppress(psycopg.OperationalError):
            while len(crowd) < CONNECTIONS:
                crowd.append(await stack.enter_async_context(await connect(dsn)))
        assert len(crowd) < CONNECTIONS, "it was to refuse some"
        await wait_until_held(cluster, VerdictKind.OVERLOADED, 3)
        await asyncio.sleep(2 * Timeouts().hung_ms / 1000)  # nothing is to happen for twice the time of a hung one
        after = await the_register(cluster)
        assert (after.epoch, after.leader) == (before.epoch, before.leader)
        await crowd[0].execute("CREATE TABLE still_written AS SELECT 1 AS id")
        await stack.aclose()
    reopened = LocalCluster.open(small)
    try:
        await wait_until_held(reopened, VerdictKind.HEALTHY, 3)
    finally:
        await reopened.close()


KILL = "COPY (SELECT 1) TO PROGRAM 'cat; kill -KILL $(head -1 postmaster.pid); sleep 3'"
"""The postmaster, whose process id is in the directory in which its children run; the statement outlives it."""


async def test_a_statement_that_kills_the_primary_and_is_tried_again_kills_one_and_not_two(small: Path) -> None:
    cluster = LocalCluster.open(small)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await until_whole(cluster)
        before = await the_register(cluster)
        direct = await stack.enter_async_context(await connect(await cluster.direct_dsn(await the_leader(cluster))))
        await direct.execute("GRANT pg_execute_server_program TO app")
        await order(cluster, "/policy", {"quarantine": "refused"})
        done = [0, 0, 0]

        async def work(number: int) -> None:
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    async with await connect(cluster.write_dsn) as session:
                        while True:
                            await session.execute("SELECT pg_sleep(0.02)")
                            done[number] += 1

        async with asyncio.TaskGroup() as group:
            working = [group.create_task(work(number)) for number in range(len(done))]
            await asyncio.sleep(LOOKS_MIN * LOOK_S + 3)  # so that the proxy knows what is usual; nothing tells of it
            killer, refused = await connect(cluster.write_dsn), 0
            while refused < 20:
                try:
                    await killer.execute(KILL)
                except psycopg.errors.ConfigurationLimitExceeded:
                    refused += 1
                except psycopg.OperationalError:
                    await killer.close()
                    killer = await connect(cluster.write_dsn)
            await killer.close()
            then = sum(done)
            while sum(done) < then + 20:  # noqa: ASYNC110 - the work goes on
                await asyncio.sleep(0.05)
            for task in working:
                task.cancel()
        after = await the_register(cluster)
        assert after.epoch == before.epoch + 1
        (suspect,) = await read_suspects(cluster)
        assert suspect.text == "copy (select ?) to program ?"
        assert (suspect.standing, suspect.rule, suspect.sessions) == (Standing.REFUSED, "suspect.unusual", 1)
        assert "released" in await order(cluster, "/suspect", {"suspect": suspect.id, "verdict": "release"})
        await order(cluster, "/policy", {"quarantine": "alone"})
