"""Processes that die one by one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.processes import Process, descendants_of, kill_postgres, postmaster_of
from holdfast.local.supervisor import wait_until_ended
from holdfast.model.keys import Keys
from holdfast.model.server import ServerStatus
from holdfast.store.contract import Deleted
from tests.live.conftest import WHOLE_S, another, connect, the_leader, the_register, until_whole, watch, watch_register

pytestmark = pytest.mark.live


def postmaster_pid(cluster: LocalCluster, node: str) -> int:
    return int((cluster.layout.data_dir(node) / "postmaster.pid").read_text().split("\n")[0])


async def kill_process(cluster: LocalCluster, name: str) -> None:
    """SIGKILL one process of the cluster, and wait until the supervisor has started it again."""
    before = cluster.state().processes[name].process
    assert before is not None
    before.send(signal.SIGKILL)
    async with asyncio.timeout(WHOLE_S):
        await wait_until_ended(before)
        while not ((now := cluster.state().processes[name]).is_alive and now.process != before):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the supervisor says it in a file, nothing to await


async def test_a_killed_agent_leaves_postgresql_serving_and_picks_it_up(cluster: LocalCluster) -> None:
    epoch = (await the_register(cluster)).epoch
    leader = await the_leader(cluster)
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
        for node in (leader, another(cluster, leader)):
            pid = postmaster_pid(cluster, node)
            await kill_process(cluster, node)
            await connection.execute("INSERT INTO kept VALUES (1)")
            await until_whole(cluster)
            assert postmaster_pid(cluster, node) == pid
    register = await the_register(cluster)
    assert (register.epoch, register.leader and register.leader.node) == (epoch, leader)


async def wait_until_record_left(cluster: LocalCluster, node: str) -> None:
    keys = Keys(cluster.name)
    async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch(cluster, keys.nodes)) as changes:
        async for change in changes:
            if isinstance(change, Deleted) and change.key == keys.node(node):
                return


async def test_who_starts_while_the_primarys_agent_is_away_finds_the_primary(cluster: LocalCluster) -> None:
    """Its record has left the store with its lease; its address has not."""
    before = await the_register(cluster)
    leader = await the_leader(cluster)
    agent = cluster.state().processes[leader].process
    assert agent is not None
    agent.send(signal.SIGSTOP)
    try:
        await wait_until_record_left(cluster, leader)
        await kill_process(cluster, another(cluster, leader))
        await kill_process(cluster, "proxy")
        async with asyncio.timeout(WHOLE_S):
            await cluster.wait_until_proxy_answers()
        async with asyncio.timeout(WHOLE_S), await connect(cluster.write_dsn) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS found_again (id int)")
            cursor = await connection.execute("SELECT inet_server_port()")
            assert await cursor.fetchone() == (cluster.file.ports.nodes[leader].postgres,)
    finally:
        agent.send(signal.SIGCONT)
    await until_whole(cluster)
    after = await the_register(cluster)
    assert (after.epoch, after.leader) == (before.epoch, before.leader)


async def test_a_killed_proxy_loses_only_its_connections(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    direct = await connect(await cluster.direct_dsn(leader))
    through = await connect(cluster.write_dsn)
    async with direct:
        await kill_process(cluster, "proxy")
        with pytest.raises(psycopg.OperationalError):
            await through.execute("SELECT 1")
        await direct.execute("SELECT 1")
        async with asyncio.timeout(WHOLE_S):
            await cluster.wait_until_proxy_answers()
        async with await connect(cluster.write_dsn) as again:
            await again.execute("SELECT 1")
    assert await the_leader(cluster) == leader


async def test_a_standby_that_dies_is_started_again(cluster: LocalCluster) -> None:
    epoch = (await the_register(cluster)).epoch
    leader = await the_leader(cluster)
    standby = another(cluster, leader)
    await cluster.kill_postgres(standby)
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS while_one_is_away (id int)")
    await until_whole(cluster)
    assert (await the_register(cluster)).epoch == epoch


def lose_directory(cluster: LocalCluster, node: str) -> None:
    """A node's PostgreSQL and its directory go at once: its agent, which would start it again, sees both or neither."""
    directory = cluster.layout.data_dir(node)
    agent, postmaster = cluster.state().processes[node].process, postmaster_of(directory)
    assert agent is not None
    assert postmaster is not None
    agent.send(signal.SIGSTOP)
    try:
        family = [p for p in map(Process.of, descendants_of(postmaster.pid)) if p is not None]
        assert kill_postgres(directory) > 0
        assert all(process.wait(WHOLE_S) for process in (postmaster, *family))
        shutil.rmtree(directory)
    finally:
        agent.send(signal.SIGCONT)


async def test_a_lost_directory_comes_back_as_a_copy_and_as_a_new_member(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    standby = another(cluster, leader)
    members = {m.node: m for m in (await the_register(cluster)).committed.quorum.members}
    lose_directory(cluster, standby)
    async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch_register(cluster)) as registers:
        async for register in registers:
            renewed = {m.node: m for m in register.committed.quorum.members}
            if standby in renewed and renewed[standby] != members[standby]:
                break
    await until_whole(cluster)
    assert await the_leader(cluster) == leader


async def test_health_answers_are_true(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    records = await cluster.node_records()
    for node in cluster.nodes:
        async with cluster.http().get(f"{records[node].api_url}/primary") as answer:
            assert answer.status == (200 if node == leader else 503)
        async with cluster.http().get(f"{records[node].api_url}/replica") as answer:
            assert answer.status == (503 if node == leader else 200)
        async with cluster.http().get(f"{records[node].api_url}/health") as answer:
            assert answer.status == 200
        async with cluster.http().post(f"{records[node].api_url}/switchover", json={}) as answer:
            assert answer.status == 401


async def test_a_whole_cluster_stops_and_starts_as_it_was(cluster: LocalCluster) -> None:
    """The last of this module: it leaves the cluster stopped."""
    before = await the_register(cluster)
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS remembered AS SELECT 1 AS id")
    assert await cluster.stop()
    cluster.start()
    try:
        await cluster.wait_until_serving(lambda step: None)
        await until_whole(cluster)
        after = await the_register(cluster)
        assert (after.epoch, after.leader) == (before.epoch, before.leader)
        async with await connect(cluster.write_dsn) as connection:
            cursor = await connection.execute("SELECT count(*) FROM remembered")
            assert await cursor.fetchone() == (1,)
        reports = await cluster.reports()
        assert all(r is not None and r.status is not ServerStatus.STOPPED for r in reports.values())
    finally:
        await cluster.stop()
