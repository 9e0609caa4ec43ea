"""Two nodes and a witness: the third vote of a site that has room for two copies only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.layout import remove
from holdfast.local.machine import server_user, temporary_root
from holdfast.local.orders import order
from holdfast.local.status import read_status
from holdfast.model.report import VerdictKind
from holdfast.postgres.installation import Installation
from tests.live.conftest import WHOLE_S, connect, noted_by_all, the_leader, the_register, until_whole
from tests.live.test_verdicts import frozen, postmaster, wait_until_held, wait_until_led_by_another
from tests.ports import next_window

pytestmark = pytest.mark.live

HEALTHY = dict.fromkeys(("n1", "n2", "w1"), "healthy")


@pytest.fixture(scope="module")
def two_and_a_witness(installation: Installation) -> Iterator[Path]:
    next_window()
    cluster = LocalCluster.create(temporary_root(2, server_user()), nodes=2, temporary=True, witness=True)

    async def serve() -> None:
        await cluster.wait_until_serving(lambda step: None)
        await order(cluster, "/policy", {"durability": "degrading"})
        await cluster.close()

    try:
        cluster.start()
        asyncio.run(serve())
        yield cluster.layout.root
    finally:
        asyncio.run(cluster.stop())
        remove(cluster.layout)


async def test_the_survivor_takes_over_with_the_witnesss_vote(two_and_a_witness: Path) -> None:
    cluster = LocalCluster.open(two_and_a_witness)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await until_whole(cluster)
        register = await the_register(cluster)
        assert (register.voters, register.witnesses, register.data_nodes) == (("n1", "n2", "w1"), ("w1",), ("n1", "n2"))
        async with asyncio.timeout(WHOLE_S):
            # A machine that has much to do finds its primary slow for a moment.
            while {v.name: v.verdict for v in (await read_status(cluster)).voters} != HEALTHY:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        leader = await the_leader(cluster)
        async with await connect(cluster.write_dsn) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
        await _lose_the_host_of(cluster, leader)
        await until_whole(cluster)
        events = await noted_by_all(
            cluster, lambda seen: any(e.rule == "verdict.silence" and e.source == "w1" for e in seen)
        )
        assert [e for e in events if e.kind == "epoch.opened"][-1].source != leader


async def _lose_the_host_of(cluster: LocalCluster, node: str) -> None:
    """Everything on it stands still until another has taken over and a client has written there."""
    agent = cluster.state().processes[node].process
    assert agent is not None
    server = postmaster(cluster, node)
    with frozen(psutil.Process(agent.pid), server, *server.children(recursive=True)):
        await wait_until_led_by_another(cluster, node)
        async with asyncio.timeout(WHOLE_S), await connect(cluster.write_dsn) as connection:
            await connection.execute("INSERT INTO kept VALUES (2)")
            cursor = await connection.execute("SELECT count(*) FROM kept")
            assert await cursor.fetchone() == (2,)


async def test_without_its_vote_one_node_does_not_take_over(two_and_a_witness: Path) -> None:
    cluster = LocalCluster.open(two_and_a_witness)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await until_whole(cluster)
        before, leader = await the_register(cluster), await the_leader(cluster)
        agents = [cluster.state().processes[name].process for name in (leader, "w1")]
        server = postmaster(cluster, leader)
        away = [psutil.Process(agent.pid) for agent in agents if agent is not None]
        with frozen(*away, server, *server.children(recursive=True)):
            await wait_until_held(cluster, VerdictKind.UNREACHABLE, 1)
            await asyncio.sleep(2 * 1.5)  # nothing is to happen for twice the time that silence takes
            assert (await the_register(cluster)).epoch == before.epoch
        await until_whole(cluster)
