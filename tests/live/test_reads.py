"""What the writable port shows while the store is away, on real processes."""

from __future__ import annotations

import asyncio
import time

import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.model.timeouts import Timeouts
from tests.installations import oldest_and_newest, version_id
from tests.live.conftest import WHOLE_S, connect, the_leader, the_register
from tests.live.test_policy import frozen, process_of

pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", oldest_and_newest()[-1:], indirect=True, ids=version_id, scope="module"),
]
TIMES = Timeouts()


async def test_without_the_store_the_quorums_word_is_enough(cluster: LocalCluster) -> None:
    before = await the_register(cluster)
    async with await connect(cluster.write_dsn) as connection, frozen(process_of(cluster, "etcd")):
        ends_at = time.monotonic() + 2 * TIMES.proxy_lease_s
        while time.monotonic() < ends_at:
            async with asyncio.timeout(WHOLE_S):  # one that is held would wait for the store, which stays away
                await connection.execute("SELECT 1")
            await asyncio.sleep(0.02)  # a client that thinks
    assert await the_register(cluster) == before


async def test_without_the_store_and_the_primarys_agent_reads_wait(cluster: LocalCluster) -> None:
    """Another primary could serve by now, for all that the proxy knows."""
    leader = await the_leader(cluster)
    async with await connect(cluster.write_dsn) as connection:
        async with frozen(process_of(cluster, leader), process_of(cluster, "etcd")):
            async with asyncio.timeout(WHOLE_S):
                while True:
                    reading = asyncio.ensure_future(connection.execute("SELECT 1"))
                    done, _ = await asyncio.wait((reading,), timeout=TIMES.freshness_ms / 1000)
                    if not done:
                        break
        async with asyncio.timeout(WHOLE_S):
            await reading
