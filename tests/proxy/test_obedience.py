"""A proxy shows what the primary says only while no other primary can serve."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from holdfast.store.contract import Deleted, Put
from holdfast.store.memory import Fault
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until, wait_until_active
from tests.proxy.servers import Server

pytestmark = pytest.mark.live


async def obeyed(cluster: Cluster, epoch: int) -> None:
    """Until the proxy's record says that it has obeyed the epoch."""
    async with contextlib.aclosing(cluster.store.watch(KEYS.obeying)) as changes:  # type: ignore[type-var]
        async for change in changes:
            if isinstance(change, Put) and change.entry.value == str(epoch).encode():
                return
            if not isinstance(change, (Put, Deleted)) and await told(cluster) == [epoch]:
                return


async def told(cluster: Cluster) -> list[int]:
    return [int(entry.value) for entry in (await cluster.store.list(KEYS.obeying)).entries]


async def test_it_says_which_epoch_it_has_obeyed_after_it_left_the_old_primary(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await fetch(connection, "select 1")
        await obeyed(pair.cluster, 1)
        assert pair.proxy.status()["servers"] == {"n1": 1}
        await pair.cluster.open_epoch()
        await obeyed(pair.cluster, 2)
        assert pair.proxy.status()["servers"] == {}


async def test_a_proxy_that_ends_takes_its_record_with_it(served: Cluster) -> None:
    await obeyed(served, 1)
    assert served.proxy is not None
    await served.proxy.stop()
    assert await told(served) == []


async def cut_off(cluster: Cluster, lasting: Server) -> Any:
    """A proxy whose store has just been lost, and a session that it let through before."""
    await cluster.serve(lasting, 1)
    proxy = await cluster.start(proxy_lease_s=1)
    connection = await cluster.connect()
    assert await fetch(connection, "select 1") == 1
    cluster.store.set_fault(Fault.REFUSED)
    return proxy, connection


async def test_without_the_store_and_the_primarys_word_statements_wait(cluster: Cluster, lasting: Server) -> None:
    proxy, connection = await cut_off(cluster, lasting)
    async with connection:
        await until(lambda: not proxy._obedience.trust.is_fresh())
        waiting = asyncio.create_task(fetch(connection, "select 2"))
        await until(lambda: bool(proxy.status()["held"]["write"]))
        assert not waiting.done()
        cluster.store.set_fault(Fault.NONE)
        assert await waiting == 2


async def test_an_answer_that_comes_too_late_is_kept_back(cluster: Cluster, lasting: Server) -> None:
    query = "select pg_advisory_xact_lock(7), 3"
    await cluster.serve(lasting, 1)
    proxy = await cluster.start(proxy_lease_s=1)
    async with await cluster.connect() as connection:
        with lasting.session("app") as holder:
            holder.execute("select pg_advisory_lock(7)")
            asked = asyncio.create_task(fetch(connection, query))
            await wait_until_active(lasting, query)
            cluster.store.set_fault(Fault.REFUSED)
            await until(lambda: not proxy._obedience.trust.is_fresh())
        idle = f"select exists (select from pg_stat_activity where state = 'idle' and query = '{query}')"
        await asyncio.to_thread(lasting.wait_for, idle)
        done, _ = await asyncio.wait((asked,), timeout=0.2)
        assert not done
        cluster.store.set_fault(Fault.NONE)
        assert await asked == ""


async def test_the_read_only_port_goes_on(cluster: Cluster, lasting: Server) -> None:
    proxy, connection = await cut_off(cluster, lasting)
    async with connection, await cluster.connect(read=True) as reader:
        await until(lambda: not proxy._obedience.trust.is_fresh())
        assert await fetch(reader, "select 4") == 4
        cluster.store.set_fault(Fault.NONE)
