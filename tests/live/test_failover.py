"""The promises of a failover, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psycopg
import pytest

from holdfast.drill.observer import Silent
from holdfast.drill.primary_crash import run_primary_crash
from holdfast.drill.runner import DrillOptions
from holdfast.drill.scenario import Load
from holdfast.local.cluster import LocalCluster
from tests.live.conftest import (
    WHOLE_S,
    another,
    connect,
    noted_by_all,
    the_leader,
    the_register,
    until_whole,
    watch_register,
)

pytestmark = pytest.mark.live


async def serving_since_ms(cluster: LocalCluster, epoch: int) -> float:
    """When the register began to say that an epoch serves (Unix milliseconds)."""
    wanted = ("epoch.serving", epoch)
    events = await noted_by_all(cluster, lambda seen: any((e.kind, e.epoch) == wanted for e in seen))
    return next(e.at_ms for e in events if (e.kind, e.epoch) == wanted)


async def wait_until_epoch_serves(cluster: LocalCluster, epoch: int) -> None:
    async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch_register(cluster)) as registers:
        async for register in registers:
            if register.committed.epoch >= epoch:
                return


async def test_the_drill_passes(cluster: LocalCluster) -> None:
    options = DrillOptions(seed=7)
    result = await run_primary_crash(cluster, options, Silent(), Load(idle=20))
    assert result.passed, result.to_json()
    assert (result.writes.lost, result.writes.duplicated) == (0, 0)
    assert result.connections.dropped_idle == 0
    assert result.old_primary != result.new_primary


async def write_until_acknowledged(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> float:
    """Try to write from a session that was opened early; when it is acknowledged (Unix milliseconds)."""
    while True:
        try:
            await connection.execute("INSERT INTO early VALUES (1)")
        except psycopg.errors.ReadOnlySqlTransaction:
            await asyncio.sleep(0.001)
            continue
        return time.time() * 1000


async def test_nothing_is_acknowledged_before_the_register_says_serving(cluster: LocalCluster) -> None:
    """Sessions opened on standbys before the promotion, and clients past the proxy that connect during it."""
    leader = await the_leader(cluster)
    epoch = (await the_register(cluster)).epoch
    async with await connect(await cluster.direct_dsn(leader)) as before:
        await before.execute("CREATE TABLE IF NOT EXISTS early (id int)")
    standbys = [n for n in cluster.nodes if n != leader]
    sessions = [await connect(await cluster.direct_dsn(n)) for n in standbys]
    acknowledged = [asyncio.ensure_future(write_until_acknowledged(s)) for s in sessions]

    async def newcomer(node: str) -> float:
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                async with await connect(await cluster.direct_dsn(node)) as connection:
                    return await write_until_acknowledged(connection)

    acknowledged += [asyncio.ensure_future(newcomer(n)) for n in standbys]
    try:
        await cluster.kill_postgres(leader)
        async with asyncio.timeout(WHOLE_S):
            await asyncio.wait(acknowledged, return_when=asyncio.FIRST_COMPLETED)
            await wait_until_epoch_serves(cluster, epoch + 1)
            since_ms = await serving_since_ms(cluster, epoch + 1)
            promoted = await the_leader(cluster)
            mine = [a for i, a in enumerate(acknowledged) if standbys[i % len(standbys)] == promoted]
            assert len(mine) == 2
            for done in asyncio.as_completed(mine):
                assert await done >= since_ms
    finally:
        for attempt in acknowledged:
            attempt.cancel()
        await asyncio.gather(*acknowledged, return_exceptions=True)
        for session in sessions:
            await session.close()


async def test_the_timeline_is_the_epoch(cluster: LocalCluster) -> None:
    register = await the_register(cluster)
    async with await connect(cluster.write_dsn) as connection:
        cursor = await connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())")
        (name,) = await cursor.fetchone() or ("",)
        assert int(str(name)[:8], 16) == register.epoch


async def test_an_old_primary_with_log_of_its_own_comes_back_without_it(cluster: LocalCluster) -> None:
    """A row committed locally while nobody listened is gone after the rewind, and the node is a new member."""
    leader = await the_leader(cluster)
    epoch = (await the_register(cluster)).epoch
    async with await connect(await cluster.direct_dsn(leader)) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS diverging (id int)")
        # Never confirmed: the standbys' walreceivers are gone for as long as it takes to write locally.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'"
        )
        await connection.execute("SET synchronous_commit = local")
        for _ in range(50):
            await connection.execute("INSERT INTO diverging SELECT generate_series(1, 1000)")
    await cluster.kill_postgres(leader)
    await wait_until_epoch_serves(cluster, epoch + 1)
    await until_whole(cluster)
    counts = set()
    for node in cluster.nodes:
        async with await connect(await cluster.direct_dsn(node)) as connection:
            async with asyncio.timeout(WHOLE_S):
                await wait_until_replayed(cluster, connection)
            cursor = await connection.execute("SELECT count(*) FROM diverging")
            counts.add(await cursor.fetchone())
    assert len(counts) == 1, "the nodes disagree"


async def wait_until_replayed(cluster: LocalCluster, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    async with await connect(cluster.write_dsn) as primary:
        cursor = await primary.execute("SELECT pg_current_wal_flush_lsn()")
        (target,) = await cursor.fetchone() or (None,)
    while True:
        cursor = await connection.execute(
            "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= %s::pg_lsn", (target,)
        )
        if (await cursor.fetchone()) == (True,):
            return
        await asyncio.sleep(0.02)


async def servers_let_go(cluster: LocalCluster) -> int:
    url = f"http://127.0.0.1:{cluster.file.ports.proxy_api}/status"
    async with cluster.http().get(url) as answer:
        return int((await answer.json())["counters"]["write"]["servers_let_go"])


async def test_a_switchover_loses_nobody(cluster: LocalCluster) -> None:
    let_go_before = await servers_let_go(cluster)
    leader = await the_leader(cluster)
    target = another(cluster, leader)
    async with await connect(cluster.write_dsn) as idle, await connect(cluster.write_dsn) as busy:
        await busy.execute("CREATE TABLE IF NOT EXISTS handed (id int)")
        await idle.execute("SELECT 1")
        stop = asyncio.Event()

        async def write() -> int:
            written = 0
            while not stop.is_set():
                await busy.execute("INSERT INTO handed VALUES (%s)", (written,))
                written += 1
            return written

        writing = asyncio.ensure_future(write())
        await cluster.switch_over(target)
        stop.set()
        written = await writing
        assert await the_leader(cluster) == target
        cursor = await busy.execute("SELECT count(*) FROM handed")
        assert await cursor.fetchone() == (written,)
        await idle.execute("SELECT 1")
        assert await servers_let_go(cluster) > let_go_before  # announced: the idle one gave its server up
    await until_whole(cluster)
    events = await noted_by_all(cluster, lambda seen: any(e.kind == "handover.begun" for e in seen))
    handed_over_ms = max(e.at_ms for e in events if e.kind == "handover.begun")
    assert not [e for e in events if e.kind == "rewind.begun" and e.at_ms > handed_over_ms]
