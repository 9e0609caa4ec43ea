"""A primary that has more sessions than it can take is slow, not lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.layout import remove
from holdfast.local.machine import server_user, temporary_root
from holdfast.model.report import VerdictKind
from holdfast.model.timeouts import Timeouts
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
