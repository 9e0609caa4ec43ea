"""The breaker of each server: one probe however many wait, held clients, reads elsewhere, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from holdfast.core.admission.breaker import BreakerState
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.proxy.breakers import Breakers
from holdfast.proxy.lane import Purpose
from holdfast.proxy.routing import Target
from holdfast.proxy.run import Proxy
from holdfast.proxy.server import ServerNotReady, ServerUnavailable
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until
from tests.proxy.conftest import ServerMaker
from tests.proxy.servers import PASSWORD, USER, Server

pytestmark = pytest.mark.live

TARGET = Target("n1", "127.0.0.1", 1, 1, is_primary=True)


async def fail(breakers: Breakers, times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(ServerUnavailable), breakers.trying(TARGET) as may_try:
            assert may_try
            raise ServerUnavailable("no answer")


async def test_of_a_thousand_sessions_at_once_one_probes() -> None:
    told: list[str] = []
    breakers = Breakers(1000, lambda kind, epoch, detail: told.append(kind))
    await fail(breakers, DEFAULT_POLICY.breaker_failures)
    await until(lambda: breakers.admits(TARGET))
    answer, may = asyncio.Event(), []

    async def ask() -> None:
        with breakers.trying(TARGET) as may_try:
            may.append(may_try)
            if may_try:
                await answer.wait()

    asking = [asyncio.create_task(ask()) for _ in range(1000)]
    await until(lambda: len(may) == 1000)
    assert may.count(True) == 1
    answer.set()
    await asyncio.gather(*asking)
    assert breakers.is_closed(TARGET)
    assert told == ["breaker.opened", "breaker.closed"]


async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    breakers = Breakers(60_000)
    await fail(breakers, DEFAULT_POLICY.breaker_failures)
    await until(lambda: breakers.admits(TARGET))

    async def hang() -> None:
        with breakers.trying(TARGET):
            await asyncio.Event().wait()

    hanging = asyncio.create_task(hang())
    await until(lambda: not breakers.admits(TARGET))
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    assert breakers.admits(TARGET)


async def test_a_server_that_answers_no_is_alive() -> None:
    breakers = Breakers(1000)
    for _ in range(100):
        with contextlib.suppress(ServerNotReady), breakers.trying(TARGET) as may_try:
            assert may_try
            raise ServerNotReady("the database system is starting up")
    assert breakers.is_closed(TARGET)


class Deaf:
    """A host that takes connections and never says a word."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.taken = 0
        self.open = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self.open += 1
        with contextlib.suppress(OSError):
            while await reader.read(1024):
                pass
        self.open -= 1
        writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", self.port):
            yield


def status(proxy: Proxy) -> dict[str, Any]:
    """The state by node of the newest epoch."""
    return {entry["node"]: entry["state"] for entry in proxy.breakers.status()}


async def test_clients_of_a_deaf_primary_are_held_and_it_meets_one_probe_at_a_time(
    cluster: Cluster, unused_port: int
) -> None:
    deaf = Deaf("n1", unused_port)
    async with deaf.listening():
        await cluster.serve(deaf, 1)
        proxy = await cluster.start(server_connect_ms=300)
        clients = [asyncio.create_task(cluster.connect()) for _ in range(60)]
        try:
            await until(lambda: proxy.breakers.opened == 1 and deaf.open == 0)
            before, most = deaf.taken, 0
            while deaf.taken < before + 3:
                most = max(most, deaf.open)
                await asyncio.sleep(0.01)
            assert most == 1
            assert proxy.lanes[Purpose.WRITE].held > 0
            assert not any(client.done() for client in clients)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def test_a_primary_that_wakes_up_is_used_again_by_all_who_were_held(
    cluster: Cluster, make_server: ServerMaker
) -> None:
    n1 = await asyncio.to_thread(make_server, "n1")
    await cluster.serve(n1, 1)
    proxy, postmaster = await cluster.start(server_connect_ms=300), n1.process
    assert postmaster is not None
    await (await cluster.connect()).close()
    postmaster.send_signal(signal.SIGSTOP)
    clients = [asyncio.create_task(cluster.connect()) for _ in range(40)]
    await until(lambda: status(proxy)["n1"] != "closed")
    postmaster.send_signal(signal.SIGCONT)
    made = await asyncio.gather(*clients)
    assert await fetch(made[0], "select inet_server_port()") == n1.port
    assert status(proxy)["n1"] == "closed"
    for connection in made:
        await connection.close()


async def test_reads_leave_a_dead_standby_alone_and_come_back(pair: Pair) -> None:
    cluster, proxy = pair.cluster, pair.proxy
    reader = await cluster.connect(read=True)
    assert await fetch(reader, "select inet_server_port()") == pair.n2.port
    await asyncio.to_thread(pair.n2.kill)
    await until(lambda: not _idle(proxy))
    for _ in range(DEFAULT_POLICY.breaker_failures + 1):
        other = await cluster.connect(read=True)
        assert await fetch(other, "select inet_server_port()") == pair.n1.port
        await other.close()
    assert status(proxy)["n2"] != "closed"
    assert await fetch(reader, "select inet_server_port()") == pair.n1.port
    await asyncio.to_thread(pair.n2.start)
    await until(lambda: status(proxy)["n2"] == "closed")  # by a probe of the proxy's own: no client asks
    assert await fetch(reader, "select inet_server_port()") == pair.n2.port
    await reader.close()


def _idle(proxy: Proxy) -> bool:
    """Whether the reader has a server still."""
    return any(r.current is not None for r in proxy._relays.values())


async def test_errors_of_sql_and_refused_logins_open_nothing(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    proxy = await cluster.start(users=f'{USER} "{PASSWORD}"\nstranger "unknown there"\n')
    for _ in range(2 * DEFAULT_POLICY.breaker_failures):
        with pytest.raises(psycopg.OperationalError):
            await cluster.connect(user="stranger", password="unknown there")
    connection = await cluster.connect()
    for _ in range(2 * DEFAULT_POLICY.breaker_failures):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("select 1/0")
    assert status(proxy) == {"n1": BreakerState.CLOSED.value}
    await connection.close()


async def test_the_policy_says_when_and_whether(cluster: Cluster, unused_port: int) -> None:
    deaf = Deaf("n1", unused_port)  # nobody listens: connections are refused
    await cluster.serve(deaf, 1)
    proxy = await cluster.start(hold_max_ms=1000)
    await cluster.store.put(KEYS.policy, DEFAULT_POLICY.changed({"breaker_failures": 0}).to_json())
    await until(lambda: proxy.routing.policy.breaker_failures == 0)
    with pytest.raises(psycopg.OperationalError):
        await cluster.connect()
    assert status(proxy) == {"n1": "closed"}
    await cluster.store.put(KEYS.policy, DEFAULT_POLICY.changed({"breaker_failures": 2}).to_json())
    await until(lambda: proxy.routing.policy.breaker_failures == 2)
    with pytest.raises(psycopg.OperationalError):
        await cluster.connect()
    assert status(proxy)["n1"] != "closed"
    assert [e.kind for e in await cluster.store.read_events() if e.kind.startswith("breaker")] == ["breaker.opened"]
