"""What tests of reads on standbys have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from holdfast.model.register import NodeState
from holdfast.proxy.replicas import Replica
from tests.proxy.cluster import Pair, fetch, until

AUTO = "-c holdfast.route=auto"
POOLINGS = pytest.mark.parametrize("pooling", ["session", "transaction"])
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@pytest.fixture
async def pair(cluster: Any, make_server: Any, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    faults: list[object] = []  # the loop tells of them, and the proxy goes on
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    n1 = await asyncio.to_thread(make_server, "n1")
    n2 = await asyncio.to_thread(make_server, "n2", n1)
    await asyncio.to_thread(n1.wait_for, "select exists (select from pg_stat_replication where state = 'streaming')")
    await cluster.serve(n1, 1)
    await cluster.record(n2, NodeState.STANDBY, 1)
    pooling = request.node.callspec.params.get("pooling", "session") if hasattr(request.node, "callspec") else "session"
    yield Pair(cluster, n1, n2, await cluster.start(pooling=pooling))
    assert not faults


def the_replica(pair: Pair) -> Replica:
    (replica,) = pair.proxy.replicas._members
    return replica


async def settled(pair: Pair, connection: Connection) -> None:
    """Until a read of this session went to the standby."""
    counters = pair.proxy.replicas.counters
    served = counters.on_standbys

    async def read() -> bool:
        await connection.execute("select 1")
        return counters.on_standbys > served

    await until(read)


async def on_standby(pair: Pair, connection: Connection, sql: str, *values: object) -> tuple[Any, bool]:
    """What a read answers, and whether a standby did."""
    before = pair.proxy.replicas.counters.on_standbys
    value = await fetch(connection, sql, *values)
    return value, pair.proxy.replicas.counters.on_standbys > before


async def there(pair: Pair, connection: Connection, sql: str, *values: object) -> Any:
    """What a standby answers, once one does: on a busy machine it may be known too late how far it is."""
    while True:
        value, was_standby = await on_standby(pair, connection, sql, *values)
        if was_standby:
            return value
        await asyncio.sleep(0.01)


async def tried_there(pair: Pair, connection: Connection, sql: str) -> Any:
    """What the primary answers, once a standby was asked before."""
    counters = pair.proxy.replicas.counters
    while True:
        redone = counters.redone
        value = await fetch(connection, sql)
        if counters.redone > redone:
            return value
        await asyncio.sleep(0.01)
