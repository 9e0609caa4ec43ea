"""What is lost when commits are local, where more than one node had it."""

from __future__ import annotations

import asyncio
import contextlib

import psutil
import psycopg
import pytest

from holdfast.core.losses import covered
from holdfast.local.cluster import LocalCluster
from holdfast.local.lost import read_lost, rows_of, script_of, without_doubles
from tests.installations import version_id
from tests.live.conftest import WHOLE_S, children_named, connect, until_whole
from tests.live.test_policy import NEWEST, asynchronous, frozen, killed_for_good, ordered, postmaster

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]


async def walsender(cluster: LocalCluster, leader: str, standby: str) -> psutil.Process:
    async with await connect(cluster.superuser_dsn(leader, "postgres")) as connection:
        asked = "SELECT pid FROM pg_stat_replication WHERE application_name LIKE %s"
        ((pid,),) = await (await connection.execute(asked, (f"{standby}_%",))).fetchall()
    assert isinstance(pid, int)
    return psutil.Process(pid)


def walreceiver(cluster: LocalCluster, node: str) -> psutil.Process:
    (found,) = children_named(postmaster(cluster, node), "walreceiver")
    return found


async def count(dsn: str) -> int:
    async with await connect(dsn) as connection:
        ((rows,),) = await (await connection.execute("SELECT count(*) FROM had")).fetchall()
    assert isinstance(rows, int)
    return rows


async def until_there(cluster: LocalCluster, node: str, rows: int) -> None:
    async with asyncio.timeout(WHOLE_S):
        while True:
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                if await count(await cluster.direct_dsn(node)) == rows:
                    return
            await asyncio.sleep(0.02)  # replay tells nobody


async def test_what_a_standby_had_beyond_its_new_primary_is_brought_back_once(ordered: LocalCluster) -> None:
    """One standby has more of the log than the other, and cannot be recruited in time: both it and the old primary
    list what is lost."""
    before = await asynchronous(ordered)
    old = before.committed.leader.node
    heir, ahead = (node for node in ordered.nodes if node != old)
    async with await connect(ordered.write_dsn) as connection:
        await connection.execute("CREATE TABLE had (n int)")
        for node in (heir, ahead):
            await until_there(ordered, node, 0)
        async with frozen(await walsender(ordered, old, heir)):
            await connection.execute("INSERT INTO had VALUES (1)")
            await until_there(ordered, ahead, 1)
            async with frozen(await walsender(ordered, old, ahead), walreceiver(ordered, ahead)):
                await connection.execute("INSERT INTO had VALUES (2)")
                after = await killed_for_good(ordered, before)
                assert after.committed.leader.node == heir
    await until_whole(ordered)
    assert await count(ordered.write_dsn) == 0
    accounts, silent = await read_lost(ordered)
    mine = [a for a in accounts if a.epoch == after.epoch]
    assert silent == []
    assert {a.member.node: len(a.of_clients) for a in mine} == {ahead: 1, old: 2}
    assert [a.member.node for a in without_doubles(mine)] == [old]
    assert [other.member.node for other in covered(mine).values()] == [old]
    (needed,) = without_doubles(mine)
    assert [row.after for row in rows_of(needed)] == [{"n": "1"}, {"n": "2"}]
    async with await connect(ordered.superuser_dsn(heir, "app")) as connection:
        await connection.execute(script_of(needed).replace("\\connect", "-- \\connect").encode())
    assert await count(ordered.write_dsn) == 2
