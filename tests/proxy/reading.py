"""What tests of reads on standbys have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from holdfast.core.freshness import Reached, Standing
from holdfast.model.lsn import Lsn
from holdfast.model.policy import Route
from holdfast.model.register import NodeState
from holdfast.proxy.pools import PoolKey, key_of
from holdfast.proxy.replicas import Replica
from holdfast.proxy.routed import Routed
from holdfast.wire import messages as m
from tests.proxy.cluster import Pair, fetch, until
from tests.proxy.sinks import Backend, Sink, World

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


class RoutedWorld(World):
    """A routed session between sinks: its primary is the first backend, its standby the second one."""

    def __init__(self) -> None:
        super().__init__("session", fast=True)
        told = {"x": "y", "standard_conforming_strings": "on"}
        self.relay._replies.reported.update(told)
        replicas = self.lane.replicas
        replicas.log_in_as = lambda user, database: None  # type: ignore[method-assign]
        self.primary = self.backends[0]
        self.replica = Replica(replicas, replace(self._target, node="n2", is_primary=False))
        self.replica.sampler.target = self.replica.target
        replicas._members.append(self.replica)
        self.standby = self.new_reader()
        self.relay.__class__ = Routed
        assert isinstance(self.relay, Routed)
        self.reads = self.relay.follow(Route.AUTO)._reads
        self.sampled()
        self.reads._needed()  # what was before is taken for written
        self.sampled()

    def new_reader(self) -> Backend:
        """One more connection to the standby, ready to be borrowed."""
        told = {"x": "y", "standard_conforming_strings": "on"}
        backend = Backend(self.replica.target, Sink(self._sock), told)
        backend.connection.held.application_name = "test"
        self.backends.append(backend)
        replica, moments = self.replica, self.lane.replicas.moments
        replica.sampler.born = replica.sampler.born or next(moments)
        pool = replica.readers._pool(self.key)
        pool.open += 1
        replica.readers._opened[backend.connection] = next(moments), next(moments)
        replica.sampler.proved = next(moments)
        pool.made(backend.connection)
        pool.give(backend.connection)
        return backend

    @property
    def key(self) -> PoolKey:
        login = self.relay._login
        return key_of(login.user, login.database, login.parameters.items())

    def sampled(self, written: int = 100, replayed: int | None = None) -> None:
        """Both servers tell how far they are; the standby as far as the primary unless told otherwise."""
        replicas = self.lane.replicas
        reached = Reached(1, Lsn(written))
        replicas.primary.answer(replicas.primary.begin(), 0.0, reached, 0.0)
        self.replica.sampler.reached = reached if replayed is None else Reached(1, Lsn(replayed))
        self.replica.standing = Standing(is_in=True, lag_ms=0.0, is_known=True)

    def ask(self, data: bytes) -> Backend | None:
        """The client sends a batch and gets the answer; who was asked for it last."""
        heard = [len(backend.sink.written) for backend in self.backends]
        self.client.data_received(data)
        asked, is_news = None, True
        while is_news:
            is_news = False
            for index, backend in enumerate(self.backends):
                news, heard[index] = bytes(backend.sink.written[heard[index] :]), len(backend.sink.written)
                if news and news != m.TERMINATE_MESSAGE:
                    asked, is_news = backend, True
                backend.listen()
            self.answer(100)
        return asked

    def close(self) -> None:
        self.replica.close()
        super().close()


@pytest.fixture
async def world() -> AsyncIterator[RoutedWorld]:
    made = RoutedWorld()
    yield made
    made.close()
