"""Guarded commits on a real cluster: every client whose commit lost its primary is told what became of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast.drill.truths import Told, Truths
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.register import Phase
from tests.installations import version_id
from tests.live.conftest import the_leader, the_register, until_whole
from tests.live.test_policy import NEWEST, ordered, until

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]
CRASHES = 2


async def guard_of(cluster: LocalCluster) -> dict[str, Any]:
    async with cluster.http().get(f"{cluster.proxy_url}/status") as answer:
        found: dict[str, Any] = json.loads(await answer.read())["commit_guard"]
        return found


async def guarded(cluster: LocalCluster) -> None:
    await order(cluster, "/policy", {"commit_guard": True, "capture_wait_s": 0})
    async with asyncio.timeout(30):
        while not (await guard_of(cluster))["on"]:  # noqa: ASYNC110 - the proxy is asked, it does not call
            await asyncio.sleep(0.05)


async def test_every_client_is_told_the_truth_about_its_commit(ordered: LocalCluster) -> None:
    await guarded(ordered)
    truths = Truths(ordered.write_dsn, 8)
    await truths.start()
    for _ in range(CRASHES):
        before, rows = await the_register(ordered), len(truths.told)
        async with asyncio.timeout(60):
            while len(truths.told) < rows + 40:  # noqa: ASYNC110 - under load
                await asyncio.sleep(0.02)
        await ordered.kill_postgres(await the_leader(ordered))
        await until(ordered, lambda r, e=before.epoch: r.phase is Phase.SERVING and r.epoch > e)  # type: ignore[misc]
        await until_whole(ordered)
    await truths.stop()
    verdict = await truths.verdict()
    found = await guard_of(ordered)
    print(verdict.told, verdict.by_way, found)
    assert not verdict.lies
    assert verdict.unknown == 0, verdict.by_way
    assert verdict.told[Told.COMMITTED] > 100
    assert found["commits"] + found["found_committed"] >= verdict.told[Told.COMMITTED]
    assert found["found_committed"] + found["found_undone"] >= 1
