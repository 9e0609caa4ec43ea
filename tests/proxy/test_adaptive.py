"""The limit that is found by trial, with a real server behind it."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.core.admission.ramp import FLOOR
from holdfast.proxy.lane import Purpose
from tests.proxy.cluster import Cluster, until
from tests.proxy.test_admission import Connection, admission, connections, rule

pytestmark = pytest.mark.live

CLIENTS = 40
ALONE = "select pg_sleep(0.04)"
"""Nobody is in another's way: the more are let in, the more are done."""
ONE_BY_ONE = "select pg_advisory_xact_lock(1), pg_sleep(0.003)"
"""One after the other, however many are let in."""


def settled(cluster: Cluster) -> int:
    adaptive = admission(cluster).adaptive
    assert adaptive is not None
    return adaptive.settled


async def load(made: list[Connection], sql: list[str]) -> None:
    """The statement that is the list's only one now, without a pause on every connection, until it is empty."""

    async def one(connection: Connection) -> None:
        while sql:
            await connection.execute(sql[0].encode())

    await asyncio.gather(*(one(connection) for connection in made))


async def test_the_limit_rises_while_nobody_is_in_the_way_and_falls_where_all_queue(served: Cluster) -> None:
    await rule(served, statements_adaptive=True, statements_max=32)
    assert settled(served) == FLOOR  # nothing is usual yet
    async with connections(served, CLIENTS) as made:
        sql = [ALONE]
        loading = asyncio.create_task(load(made, sql))
        await until(lambda: settled(served) > FLOOR)
        sql[0] = ONE_BY_ONE
        await until(lambda: settled(served) == FLOOR)
        status = admission(served).status()
        assert status["adaptive"]["floor"] == FLOOR <= status["adaptive"]["limit"] <= status["limit"] + FLOOR
        assert admission(served).gate.take_peak() <= 32
        sql.clear()
        await loading
    assert served.proxy is not None
    assert served.proxy.lanes[Purpose.WRITE].counters.statements_shed == 0


async def test_it_is_switched_on_and_off_at_run_time_and_stays_below_the_bound(served: Cluster) -> None:
    await rule(served, statements_adaptive=True)
    assert admission(served).gate.limit == FLOOR
    await rule(served, statements_adaptive=True, statements_max=3)
    assert admission(served).gate.limit == 3
    await rule(served, statements_adaptive=False, statements_max=3)
    assert (admission(served).gate.limit, admission(served).status()["adaptive"]) == (3, None)
    await rule(served, statements_adaptive=True, admission=False)
    assert admission(served).gate.limit is None
