"""Statements that may have killed a primary: who is suspected, and who may run them afterwards."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest

from holdfast.core.admission.suspicion import LOOKS_MIN, judged
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.register import NodeState
from holdfast.model.suspect import Standing, Suspect, Verdict
from holdfast.proxy.lane import Purpose
from holdfast.proxy.quarantine import Quarantine
from holdfast.wire.fingerprint import fingerprint
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until, wait_until_active
from tests.proxy.servers import Server

pytestmark = pytest.mark.live

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

DEATH = "select pg_sleep(60), 'death'"
ID = fingerprint(DEATH.encode()).id
QUICK = "select pg_sleep(0.001), 'death'"
"""The same statement, with other literals."""
NORMAL = "select pg_sleep(0.02)"


def quarantine(cluster: Cluster) -> Quarantine:
    assert cluster.proxy is not None
    return cluster.proxy.quarantine


def shown(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in quarantine(cluster).status()}


async def record(cluster: Cluster) -> Suspect | None:
    entry = await cluster.store.get(KEYS.suspect(ID))
    return None if entry is None else Suspect.from_json(entry.value)


async def accuse(cluster: Cluster, standing: Standing = Standing.ALONE, sessions: int = 1) -> Suspect:
    """As another proxy would."""
    suspect = Suspect(ID, "select …", (1,), standing, "suspect.unusual", sessions, 1, 4e12)
    await cluster.store.put(KEYS.suspect(ID), suspect.to_json())
    await until(lambda: (ID in shown(cluster)) is suspect.is_held)
    return suspect


@asynccontextmanager
async def busy(cluster: Cluster, sessions: int = 4) -> AsyncIterator[None]:
    """Ordinary work, seen often enough to be usual."""

    async def work(connection: Connection) -> None:
        with suppress(psycopg.OperationalError):
            while True:
                await connection.execute(NORMAL)

    made = [await cluster.connect() for _ in range(sessions)]
    working = [asyncio.create_task(work(connection)) for connection in made]
    try:
        usual = quarantine(cluster)._usual
        while len(usual.looks) < LOOKS_MIN:
            await asyncio.sleep(0.02)
            quarantine(cluster).look()
        yield
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        for connection in made:
            await connection.close()


async def lost(running: asyncio.Task[Any]) -> None:
    with pytest.raises(psycopg.OperationalError):
        await running


async def test_what_ran_when_the_primary_died_is_let_in_alone_and_the_normal_work_at_once(pair: Pair) -> None:
    cluster = pair.cluster
    async with busy(cluster):
        killers = [await cluster.connect() for _ in range(3)]
        running = asyncio.create_task(killers[0].execute(DEATH))
        await wait_until_active(pair.n1, DEATH.replace("'", "''"))
        await pair.fail_over()
        await lost(running)
        assert list(shown(cluster)) == [ID]
        known = await until_recorded(cluster)
        assert (known.standing, known.epochs, known.rule) == (Standing.ALONE, (1,), "suspect.unusual")
        assert "death" not in known.text
        running = asyncio.create_task(killers[0].execute(DEATH))
        await wait_until_active(pair.n2, DEATH.replace("'", "''"))
        waiting = [asyncio.create_task(killer.execute(QUICK)) for killer in killers[1:]]
        await until(lambda: shown(cluster)[ID]["waiting"] == 2)
        other = await cluster.connect()
        assert await fetch(other, "select 1") == 1
        await other.execute(NORMAL)
        assert shown(cluster)[ID]["inside"] == 1
        await other.execute("begin")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="on trial") as refusal:
            await other.execute(QUICK)  # whoever may hold locks does not wait for others
        assert f"holdfast quarantine release {ID}" in str(refusal.value.diag.message_hint)
        assert other.closed  # else what it did before could be committed without that
        other = await cluster.connect()
        await killers[0].cancel_safe()  # it has not run to its end, and proves nothing
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running
        await asyncio.gather(*waiting)
        assert shown(cluster)[ID]["limit"] <= 2
        for connection in (*killers, other):
            await connection.close()


async def until_recorded(cluster: Cluster) -> Suspect:
    await until(partial(_has, cluster, None))
    known = await record(cluster)
    assert known is not None
    return known


async def test_a_second_primary_that_dies_under_a_suspect_on_trial_keeps_it_refused(pair: Pair) -> None:
    cluster = pair.cluster
    killer = await cluster.connect()
    await accuse(cluster)
    running = asyncio.create_task(killer.execute(DEATH))
    await wait_until_active(pair.n1, DEATH.replace("'", "''"))
    await pair.fail_over()
    await lost(running)
    known = await until_changed(cluster, Standing.REFUSED)
    assert (known.rule, known.standing) == ("suspect.again", Standing.REFUSED)
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="is refused"):
        await killer.execute(DEATH)
    assert await fetch(killer, "select 1") == 1
    ((count,),) = await asyncio.to_thread(
        pair.n2.query, "select count(*) from pg_stat_activity where query like '%death%' and pid <> pg_backend_pid()"
    )
    assert count == 0
    await cluster.store.put(KEYS.suspect(ID), judged(known, Verdict.RELEASE, 5e12).to_json())
    await until(lambda: ID not in shown(cluster))
    await killer.execute(QUICK)
    told = [e for e in await cluster.store.read_events() if e.kind == "suspect.accused"]
    assert [(e.rule, e.epoch, e.detail["standing"]) for e in told] == [("suspect.again", 1, "refused")]
    await killer.close()


async def until_changed(cluster: Cluster, standing: Standing) -> Suspect:
    await until(partial(_has, cluster, standing))
    known = await record(cluster)
    assert known is not None
    return known


async def _has(cluster: Cluster, standing: Standing | None) -> bool:
    known = await record(cluster)
    return known is not None and standing in (None, known.standing)


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_a_suspect_that_does_no_harm_is_let_in_with_more_and_then_released_everywhere(
    cluster: Cluster, lasting: Server, pooling: str
) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start(pooling=pooling)
    await accuse(cluster, sessions=2)
    made = [await cluster.connect() for _ in range(12)]
    most = 0

    async def run(connection: Connection) -> None:
        nonlocal most
        while quarantine(cluster).is_on:
            await connection.execute(QUICK, prepare=True)
            if quarantine(cluster).is_on:
                most = max(most, shown(cluster)[ID]["inside"])

    await asyncio.gather(*(run(connection) for connection in made))
    assert most <= 8
    known = await until_changed(cluster, Standing.RELEASED)
    assert known.rule == "suspect.harmless"
    for connection in made:
        await connection.close()


async def test_whoever_waits_for_a_suspect_may_cancel_leave_or_wait_too_long(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    proxy = await cluster.start()
    policy = DEFAULT_POLICY.changed({"classes": {"background": {"users": [], "application_names": ["short"]}}})
    policy = policy.changed({"classes": {"background": {"wait_max_ms": 50}}})
    await cluster.store.put(KEYS.policy, policy.to_json())
    await until(lambda: proxy.routing.policy == policy)
    await accuse(cluster)
    first, cancelled, gone = [await cluster.connect() for _ in range(3)]
    short = await cluster.connect(application_name="short")
    running = asyncio.create_task(first.execute(DEATH))
    await wait_until_active(lasting, DEATH.replace("'", "''"))
    waiting = [asyncio.create_task(connection.execute(QUICK)) for connection in (cancelled, gone)]
    await until(lambda: shown(cluster)[ID]["waiting"] == 2)
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="on trial"):
        await short.execute(QUICK)
    await cancelled.cancel_safe()
    with pytest.raises(psycopg.errors.QueryCanceled):
        await waiting[0]
    assert await fetch(cancelled, "select 1") == 1
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    await gone.close()
    await until(lambda: shown(cluster)[ID]["waiting"] == 0)
    assert shown(cluster)[ID]["inside"] == 1
    await first.cancel_safe()
    with pytest.raises(psycopg.errors.QueryCanceled):
        await running
    await cancelled.execute(QUICK)  # its place is free again
    await until(lambda: shown(cluster)[ID]["inside"] == 0)
    for connection in (first, cancelled, short):
        await connection.close()


async def test_a_client_that_leaves_its_suspect_running_keeps_the_place_until_it_is_done(
    cluster: Cluster, lasting: Server
) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start()
    await accuse(cluster)
    leaver, waiter = await cluster.connect(), await cluster.connect()
    running = asyncio.create_task(leaver.execute(DEATH))
    await wait_until_active(lasting, DEATH.replace("'", "''"))
    gone = socket.socket(fileno=os.dup(leaver.fileno()))
    gone.shutdown(socket.SHUT_RDWR)
    gone.close()
    await lost(running)
    assert cluster.proxy is not None
    await until(lambda: len(cluster.proxy.lanes[Purpose.WRITE].orphans) == 1)  # type: ignore[union-attr]
    waiting = asyncio.create_task(waiter.execute(QUICK))
    await until(lambda: shown(cluster)[ID]["waiting"] == 1)
    assert shown(cluster)[ID]["inside"] == 1
    ended = "select pg_cancel_backend(pid) from pg_stat_activity where query like '%pg_sleep(60)%' and usename = 'app'"
    await asyncio.to_thread(lasting.query, ended)
    await waiting
    await waiter.close()


async def test_in_the_middle_of_a_batch_a_refusal_ends_the_session(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    await cluster.start()
    await accuse(cluster, Standing.REFUSED)
    connection = await cluster.connect()

    async def run() -> None:
        async with connection.pipeline():
            await connection.execute("select 1")
            await connection.execute(QUICK)

    with pytest.raises(psycopg.OperationalError):
        await run()
    assert connection.closed
    assert shown(cluster)[ID]["refused"] == 1


async def test_a_switchover_suspects_nobody_and_the_policy_may_do_without(pair: Pair) -> None:
    cluster = pair.cluster
    await cluster.store.put(KEYS.policy, DEFAULT_POLICY.changed({"quarantine": "off"}).to_json())
    await until(lambda: pair.proxy.routing.policy.quarantine.value == "off")
    suspect = Suspect(ID, "select …", (1,), Standing.REFUSED, "suspect.again", 1, 1, 0)
    await cluster.store.put(KEYS.suspect(ID), suspect.to_json())
    killer = await cluster.connect()
    await killer.execute(QUICK)
    running = asyncio.create_task(killer.execute(DEATH))
    await wait_until_active(pair.n1, DEATH.replace("'", "''"))
    await pair.fail_over()
    await lost(running)
    assert shown(cluster) == {}
    assert (await record(cluster)) == suspect
    await killer.close()


async def test_records_that_are_over_are_forgotten_and_others_stay(cluster: Cluster, lasting: Server) -> None:
    await cluster.serve(lasting, 1)
    proxy = await cluster.start()
    proxy._suspects.lasts_ms = math.inf
    await accuse(cluster)
    proxy._suspects._sweep()
    assert not proxy._suspects._changes
    proxy._suspects.lasts_ms = -math.inf
    proxy._suspects._sweep()
    await until(lambda: shown(cluster) == {})
    assert await record(cluster) is None


async def test_reads_and_records_that_cannot_be_read_do_no_harm(pair: Pair) -> None:
    cluster = pair.cluster
    await cluster.store.put(KEYS.suspect("x"), b"{}")
    await accuse(cluster, Standing.REFUSED)
    await cluster.record(pair.n2, NodeState.STANDBY, 1)
    reader = await cluster.connect(read=True)
    await reader.execute(QUICK)  # only the writable port has a quarantine
    assert pair.proxy.lanes[Purpose.READ].quarantine.status() == []
    await reader.close()
