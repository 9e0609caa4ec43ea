"""What clients met is in the journal afterwards: how many waited, how long, and what failed."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from holdfast.core.course import Course
from holdfast.model.event import Event
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.proxy.lane import Purpose
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until
from tests.proxy.servers import Server

pytestmark = pytest.mark.live


async def told(cluster: Cluster) -> Event:
    """The first account in the journal."""
    async with asyncio.timeout(30):
        while True:
            for event in await cluster.store.read_events():
                if event.kind == "clients.held":
                    return event
            await asyncio.sleep(0.05)  # the journal is read, not watched


async def test_statements_that_waited_for_a_failover_are_told_with_the_longest_wait(pair: Pair) -> None:
    connections = [await pair.cluster.connect() for _ in range(5)]
    loop = asyncio.get_running_loop()
    await pair.lose_primary()
    began_s = loop.time()
    tasks = [asyncio.create_task(fetch(c, "select 1")) for c in connections]
    await pair.wait_until_held(5)
    await asyncio.sleep(0.2)
    await pair.promote()
    await asyncio.gather(*tasks)
    waited_ms = (loop.time() - began_s) * 1000
    event = await told(pair.cluster)
    longest_ms = event.detail.pop("longest_ms")
    course = Course.from_detail(event.detail.pop("course"))
    assert course is not None
    assert (max(course.held), sum(course.done), sum(course.failed)) == (5, 5, 0)
    assert course.held[-1] == 0, "it ends when all was quiet"
    figures = {"held": 5, "refused": 0, "unknown": 0, "undone": 0}
    assert event.detail == {**figures, "classes": {"normal": {**figures, "longest_ms": longest_ms}}}
    assert isinstance(longest_ms, int)
    assert 200 <= longest_ms <= waited_ms + 1
    assert event.epoch == pair.proxy.routing.epoch
    assert event.source == f"proxy 127.0.0.1:{pair.cluster.write_port}"
    for connection in connections:
        await connection.close()


async def test_statements_that_waited_in_vain_are_told_as_refused(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    proxy = await cluster.start(hold_max_ms=200)
    async with await cluster.connect() as connection:
        await cluster.open_epoch()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select 1")
        assert proxy.lanes[Purpose.WRITE].counters.holds_ended == 1
    event = await told(cluster)
    assert (event.detail["held"], event.detail["refused"]) == (1, 1)


async def test_each_class_is_told_of_by_itself(cluster: Cluster, lasting: Server) -> None:
    """One session of the critical class waits and is refused; one of another has its transaction undone."""
    await cluster.serve(lasting, 1)
    classes = {"critical": {"application_names": ["shop"]}, "background": {"application_names": ["report"]}}
    policy = DEFAULT_POLICY.changed({"classes": classes})
    await cluster.store.put(KEYS.policy, policy.to_json())
    proxy = await cluster.start(hold_max_ms=2000)
    await until(lambda: proxy.routing.policy == policy)
    shop = await cluster.connect(application_name="shop")
    report = await cluster.connect(application_name="report")
    await report.execute("begin")
    await report.execute("select 1")
    await cluster.open_epoch()
    for connection in (shop, report):
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select 1")
        await connection.close()
    assert proxy.lanes[Purpose.WRITE].counters.status()["classes"] == {
        "critical": {"held": 1, "refused": 1, "unknown": 0, "undone": 0},
        "background": {"held": 0, "refused": 0, "unknown": 0, "undone": 1},
    }
    event = await told(cluster)
    found = event.detail["classes"]
    assert isinstance(found, dict)
    assert found["background"] == {"held": 0, "refused": 0, "unknown": 0, "undone": 1, "longest_ms": 0}
    assert isinstance(found["critical"], dict)
    assert found["critical"]["longest_ms"] == event.detail["longest_ms"]
    assert (event.detail["held"], event.detail["refused"], event.detail["undone"]) == (1, 1, 1)


async def test_a_proxy_that_stops_tells_what_it_has_not_told_yet(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await pair.lose_primary()
        waiting = asyncio.create_task(connection.execute("select 1"))
        await pair.wait_until_held(1)
        await asyncio.sleep(0.2)  # less is not worth an entry
        await pair.proxy.stop()
        with pytest.raises(psycopg.OperationalError):
            await waiting
    event = await told(pair.cluster)
    assert event.detail["held"] == 1
    assert 200 <= event.detail["longest_ms"] < 60_000  # type: ignore[operator]


async def test_what_was_under_way_is_told_by_what_became_of_it(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("begin")
        await connection.execute("select 1")
        await pair.fail_over()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select 1")
    event = await told(pair.cluster)
    assert event.detail["undone"] == 1
