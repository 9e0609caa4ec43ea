"""The store loses the register, or gets an older one back from a backup."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.model.keys import Keys
from tests.cli.running import holdfast
from tests.live.conftest import WHOLE_S, another, connect, the_leader, the_register, until_whole
from tests.live.test_failover import wait_until_epoch_serves
from tests.live.test_processes import kill_process

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


async def wait_until_alarmed(cluster: LocalCluster) -> None:
    async with asyncio.timeout(WHOLE_S):
        while not all(r is not None and r.alarm for r in (await cluster.reports()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # agents are asked over HTTP: there is nothing to await


async def recovered(cluster: LocalCluster, *words: str) -> dict[str, object]:
    done = await asyncio.to_thread(holdfast, "recover", "--dir", cluster.layout.root, "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def test_a_register_that_was_deleted_under_load_is_rebuilt_and_nothing_is_lost(cluster: LocalCluster) -> None:
    before = await the_register(cluster)
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def write() -> None:
        async with await connect(cluster.write_dsn) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS recovered (id int)")
            for number in itertools.count():
                if stop.is_set():
                    return
                with contextlib.suppress(psycopg.Error):  # one whose outcome is unknown does not count
                    await connection.execute("INSERT INTO recovered VALUES (%s)", (number,))
                    acknowledged.append(number)

    writing = asyncio.ensure_future(write())
    try:
        async with asyncio.timeout(WHOLE_S):
            while len(acknowledged) < 50:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await cluster.store().delete(Keys(cluster.name).register)
        await wait_until_alarmed(cluster)
        foretold = await recovered(cluster, "--dry-run")
        assert (foretold["done"], foretold["epoch"]) == (False, before.epoch + 1)
        assert await cluster.register() is None
        done = await recovered(cluster, "--yes")
        assert done["done"] is True
        assert (await the_register(cluster)).epoch > before.epoch
        count = len(acknowledged)
        async with asyncio.timeout(WHOLE_S):
            while len(acknowledged) < count + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
    await until_whole(cluster)
    async with await connect(cluster.write_dsn) as connection:
        cursor = await connection.execute("SELECT id FROM recovered")
        found = {row[0] for row in await cursor.fetchall()}
    assert found >= set(acknowledged)


async def test_an_older_register_raises_alarms_and_is_replaced(cluster: LocalCluster) -> None:
    keys, old = Keys(cluster.name), await the_register(cluster)
    leader = await the_leader(cluster)
    await cluster.kill_postgres(leader)
    await wait_until_epoch_serves(cluster, old.epoch + 1)
    await until_whole(cluster)
    now = await the_register(cluster)
    refused = await asyncio.to_thread(holdfast, "recover", "--dir", cluster.layout.root, "--yes")
    assert refused.returncode == 1
    assert f"the register of epoch {now.epoch} is in force: nothing to do" in refused.stderr
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS after_backup AS SELECT 1 AS id")
    await cluster.store().put(keys.register, old.to_json())
    await wait_until_alarmed(cluster)
    assert (await recovered(cluster, "--yes"))["epoch"] == now.epoch + 1
    await until_whole(cluster)
    async with await connect(cluster.write_dsn) as connection:
        cursor = await connection.execute("SELECT count(*) FROM after_backup")
        assert await cursor.fetchone() == (1,)


async def test_a_missing_agent_is_named_before_anything_is_written(cluster: LocalCluster) -> None:
    register = await the_register(cluster)
    absent = another(cluster, await the_leader(cluster))
    await cluster.store().delete(Keys(cluster.name).register)
    await wait_until_alarmed(cluster)
    async with cluster_without(cluster, absent):
        refused = await asyncio.to_thread(holdfast, "recover", "--dir", cluster.layout.root, "--yes")
        assert refused.returncode == 1
        assert f"{absent}: its agent does not answer" in refused.stderr
        told = await asyncio.to_thread(
            holdfast, "recover", "--dir", cluster.layout.root, "--ignore", absent, "--dry-run"
        )
        assert f"RISK {absent}: could not have taken over alone" in told.stdout
        await recovered(cluster, "--ignore", absent, "--yes")
    await until_whole(cluster)
    assert (await the_register(cluster)).epoch > register.epoch


@contextlib.asynccontextmanager
async def cluster_without(cluster: LocalCluster, node: str) -> AsyncIterator[None]:
    """While one agent stands still; then it is killed and started again."""
    agent = cluster.state().processes[node].process
    assert agent is not None
    agent.send(signal.SIGSTOP)
    try:
        yield
    finally:
        await kill_process(cluster, node)
