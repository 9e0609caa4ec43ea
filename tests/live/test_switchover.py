"""Switchovers that are rehearsed, planned, dropped, and that fail on the way."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import UTC, datetime, timedelta

import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.switchover import cancel, plan, planned, rehearse
from holdfast.model.errors import HoldfastError
from holdfast.model.event import Event
from tests.cli.running import holdfast
from tests.live.conftest import WHOLE_S, another, connect, the_leader, the_register, until_whole, watch_register
from tests.live.test_verdicts import frozen, walreceiver

pytestmark = pytest.mark.live


async def noted(cluster: LocalCluster, kind: str, since_ms: float) -> Event:
    async with asyncio.timeout(WHOLE_S):
        while True:
            found = [e for e in await cluster.events() if e.kind == kind and e.at_ms >= since_ms]
            if found:
                return found[-1]
            await asyncio.sleep(0.05)  # the journal is read, not watched


async def test_a_rehearsal_changes_nothing(cluster: LocalCluster) -> None:
    before = await the_register(cluster)
    leader = await the_leader(cluster)
    target = another(cluster, leader)
    lines = await rehearse(cluster, target)
    assert any(f"{leader} stops in good order while {target} still streams" in line for line in lines)
    with pytest.raises(HoldfastError, match=f"{leader} is the primary already"):
        await rehearse(cluster, leader)
    done = await asyncio.to_thread(holdfast, "switchover", "--dir", cluster.layout.root, "--to", target, "--dry-run")
    lag = re.compile(r"\d+ bytes behind")  # of another moment
    assert [lag.sub("", line) for line in done.stdout.splitlines()] == [lag.sub("", line) for line in lines]
    assert await the_register(cluster) == before


async def test_a_planned_one_is_shown_can_be_dropped_and_is_done_in_time(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    target = another(cluster, leader)
    await plan(cluster, target, datetime.now(UTC) + timedelta(hours=3))
    shown = await asyncio.to_thread(holdfast, "status", "--dir", cluster.layout.root)
    assert f"switchover to {target} at " in shown.stdout
    await cancel(cluster)
    assert await planned(cluster) is None
    with pytest.raises(HoldfastError, match="no switchover is planned"):
        await cancel(cluster)
    soon = datetime.now(UTC) + timedelta(seconds=2)
    await plan(cluster, target, soon)
    async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch_register(cluster)) as registers:
        async for register in registers:
            if register.leader is not None and register.leader.node == target:
                break
    begun = await noted(cluster, "handover.begun", soon.timestamp() * 1000)
    assert begun.detail["target"] == target
    assert await planned(cluster) is None


async def test_a_planned_one_whose_target_is_not_fit_then_is_not_done(cluster: LocalCluster) -> None:
    before = await the_register(cluster)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await plan(cluster, await the_leader(cluster), soon)
    refused = await noted(cluster, "handover.refused", soon.timestamp() * 1000)
    assert "is the primary already" in str(refused.detail["reason"])
    assert (await the_register(cluster)).leader == before.leader


async def test_of_two_at_once_one_is_done_and_the_other_is_told_why_not(cluster: LocalCluster) -> None:
    before = await the_register(cluster)
    leader = await the_leader(cluster)
    both = await asyncio.gather(*(cluster.switch_over(None) for _ in range(2)), return_exceptions=True)
    refused = [said for said in both if isinstance(said, BaseException)]
    assert all(isinstance(said, HoldfastError) and "try again" in str(said) for said in refused), both
    after = await the_register(cluster)
    assert after.epoch == before.epoch + 1
    assert after.leader is not None
    assert after.leader.node != leader
    await until_whole(cluster)


async def test_a_target_that_does_not_get_the_last_record_leaves_the_leader_leading(cluster: LocalCluster) -> None:
    """The fast stop waits for the deaf target, is abandoned, and the leader starts again in the same epoch."""
    before = await the_register(cluster)
    leader = await the_leader(cluster)
    target = another(cluster, leader)
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS gone_on (id int)")
        with frozen(walreceiver(cluster, target)):
            await connection.execute("INSERT INTO gone_on VALUES (1)")
            with pytest.raises(HoldfastError, match=f"given up, and {leader} goes on as primary"):
                await cluster.switch_over(target)
        await connection.execute("INSERT INTO gone_on VALUES (2)")
    after = await the_register(cluster)
    assert (after.epoch, after.leader, after.handover) == (before.epoch, before.leader, None)
    await until_whole(cluster)
