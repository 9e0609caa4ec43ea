"""What is let into the server: bounds, classes, refusals, and the ramp after a promotion."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from holdfast.core.admission.gate import LONG_MS, Gate
from holdfast.core.admission.ramp import RULES
from holdfast.model.event import Event
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.ramp import Order, RampOrder
from holdfast.proxy.admission import Admission
from holdfast.proxy.lane import Purpose
from holdfast.proxy.relay import Relay
from tests.proxy.cluster import KEYS, Cluster, Pair, fetch, until, wait_until_active
from tests.proxy.servers import Server

pytestmark = pytest.mark.live

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


def admission(cluster: Cluster) -> Admission:
    assert cluster.proxy is not None
    return cluster.proxy.lanes[Purpose.WRITE].admission


async def rule(cluster: Cluster, *, long_ms: float = math.inf, **changes: Any) -> None:
    """Put a policy in force. A slow machine must not make statements long that are to keep others out."""
    admission(cluster).gate.long_ms = long_ms
    policy = DEFAULT_POLICY.changed(changes)
    await cluster.store.put(KEYS.policy, policy.to_json())
    await until(lambda: cluster.proxy is not None and cluster.proxy.routing.policy == policy)


@asynccontextmanager
async def connections(cluster: Cluster, count: int, application_name: str = "app") -> AsyncIterator[list[Connection]]:
    made = [await cluster.connect(application_name=application_name) for _ in range(count)]
    try:
        yield made
    finally:
        for connection in made:
            await connection.close()


def waiting(cluster: Cluster) -> int:
    return admission(cluster).gate.waiting


def inside(cluster: Cluster) -> int:
    return admission(cluster).gate.inside


async def test_a_limit_is_kept_at_the_server_and_everybody_gets_in(served: Cluster, lasting: Server) -> None:
    await rule(served, statements_max=2)
    active = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep(0.05)%'"
    async with connections(served, 12) as made:
        tasks = [asyncio.create_task(c.execute("select pg_sleep(0.05)")) for c in made]
        seen = []
        while not all(task.done() for task in tasks):
            ((count,),) = await asyncio.to_thread(lasting.query, active)
            seen.append(count)
        await asyncio.gather(*tasks)
        assert max(seen) <= 4  # it looks at one session after the other, and may see one that ended and one that began
        assert inside(served) == waiting(served) == 0
        assert admission(served).gate.waited >= 8


async def test_a_transaction_is_inside_until_it_ends(served: Cluster) -> None:
    await rule(served, statements_max=1)
    async with connections(served, 2) as (first, second):
        await first.execute("begin")
        blocked = asyncio.create_task(fetch(second, "select %s::int", 7))
        await until(lambda: waiting(served) == 1)
        await first.execute("select 1")
        assert not blocked.done()
        await first.execute("commit")
        assert await blocked == 7
        async with first.pipeline():
            await first.execute("select 1")
            await first.execute("select 2")
        assert await fetch(second, "select 8") == 8
        with pytest.raises(psycopg.errors.DivisionByZero):
            await first.execute("select 1/0")
        assert await fetch(second, "select 9") == 9


async def test_too_many_and_too_long_are_refused_with_the_time_to_come_back(served: Cluster) -> None:
    await rule(served, statements_max=1, classes={"normal": {"queue_max": 1, "wait_max_ms": 600_000}})
    async with connections(served, 3) as (first, second, third):
        await first.execute("begin")
        late = asyncio.create_task(second.execute("select 1"))
        await until(lambda: waiting(served) == 1)
        for prepare in (False, True):
            with pytest.raises(psycopg.errors.TooManyConnections, match="1 statements of class normal wait") as caught:
                await third.execute("select %s", [1], prepare=prepare)
            found = re.fullmatch(r"class=normal retry_after_ms=(\d+)", caught.value.diag.message_detail or "")
            assert found is not None
            assert f"Try again in {found[1]} ms" in (caught.value.diag.message_hint or "")
            assert third.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        await rule(served, statements_max=1, classes={"normal": {"queue_max": 1, "wait_max_ms": 300}})
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match=r"waited \d+ ms, as long"):
            await late
        await first.execute("rollback")
        assert await fetch(second, "select 1") == await fetch(third, "select 1") == 1
        assert served.proxy is not None
        assert served.proxy.lanes[Purpose.WRITE].counters.statements_shed == 3
        assert admission(served).status()["classes"]["normal"]["refused"] == 3


async def test_a_quota_holds_one_user_back_and_nobody_else(served: Cluster) -> None:
    quota = {"databases": ["app"], "each": "user", "statements_max": 1, "wait_max_ms": 600_000}
    await rule(served, classes={"tenants": quota})
    async with connections(served, 3) as (first, second, third):
        name = first.info.user
        await first.execute("begin")
        blocked = asyncio.create_task(fetch(second, "select 7"))
        await until(lambda: waiting(served) == 1)
        status = admission(served).status()["classes"]["tenants"]
        assert (status["inside"], status["waiting"], status["over_quota"]) == (1, 1, 1)
        await rule(served, classes={"tenants": {**quota, "queue_max": 0}})
        with pytest.raises(psycopg.errors.TooManyConnections, match=f"user {name} may have 1 at once, its quota in"):
            await third.execute("select 1")
        await first.execute("commit")
        assert await blocked == 7


async def test_a_rate_is_kept_without_anything_ending(served: Cluster) -> None:
    await rule(served, classes={"normal": {"statements_per_s": 20}})
    async with connections(served, 1) as (connection,):
        began = asyncio.get_running_loop().time()
        for _ in range(30):
            await connection.execute("select 1")
        assert asyncio.get_running_loop().time() - began >= 10 / 20 - 0.01  # the first 20 come at once


async def test_who_cancels_or_leaves_while_waiting_takes_no_place(served: Cluster) -> None:
    await rule(served, statements_max=1)
    async with connections(served, 3) as (first, second, third):
        await first.execute("begin")
        impatient = asyncio.create_task(second.execute("select 1"))
        await until(lambda: waiting(served) == 1)
        await second.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await impatient
        gone = asyncio.create_task(third.execute("select 1"))
        await until(lambda: waiting(served) == 1)
        await third.close()
        with pytest.raises(psycopg.OperationalError):
            await gone
        await until(lambda: waiting(served) == 0)
        await first.execute("commit")
        assert await fetch(second, "select 2") == 2
        assert inside(served) == 0


async def test_a_client_that_goes_leaves_its_place_when_the_server_has_done(served: Cluster, lasting: Server) -> None:
    """Else clients that give up early and come again would pile up in the server what the gate keeps out."""
    await rule(served, statements_max=1)
    assert served.proxy is not None
    orphans = served.proxy.lanes[Purpose.WRITE].orphans
    with lasting.session("app") as holder:
        holder.execute("select pg_advisory_lock(7)")
        async with connections(served, 2) as (impatient, patient):
            running = asyncio.create_task(impatient.execute("select pg_advisory_xact_lock(7)"))
            await wait_until_active(lasting, "select pg_advisory_xact_lock(7)")
            gone = socket.socket(fileno=os.dup(impatient.fileno()))
            gone.shutdown(socket.SHUT_RDWR)
            gone.close()
            with pytest.raises(psycopg.OperationalError):
                await running
            await until(lambda: len(orphans) == 1)
            next_one = asyncio.create_task(fetch(patient, "select 1"))
            await until(lambda: waiting(served) == 1)
            assert inside(served) == 1
            holder.execute("select pg_advisory_unlock(7)")
            assert await next_one == 1
            assert (inside(served), len(orphans)) == (0, 0)


async def test_who_cancels_in_the_moment_of_being_let_in_runs_nothing(served: Cluster, lasting: Server) -> None:
    await rule(served, statements_max=1)
    assert served.proxy is not None
    async with connections(served, 2) as (first, second):
        await first.execute("create table if not exists crossed (n int)")
        await first.execute("begin")
        crossing = asyncio.create_task(second.execute("insert into crossed values (1)"))
        await until(lambda: waiting(served) == 1)
        inside_now, in_line = (relay_of(served, c) for c in (first, second))
        served.proxy.lanes[Purpose.WRITE].admission.give_back(inside_now._permit)
        assert in_line.cancel() is None  # before its task has run
        with pytest.raises(psycopg.errors.QueryCanceled):
            await crossing
        assert inside(served) == 0
        await first.execute("commit")
        assert await fetch(second, "select count(*) from crossed") == 0
        await second.execute("drop table crossed")
        assert inside(served) == 0


def relay_of(cluster: Cluster, connection: Connection) -> Relay:
    assert cluster.proxy is not None
    return cluster.proxy._relays[connection.info.backend_pid]


async def test_a_refusal_does_not_overtake_an_answer(served: Cluster) -> None:
    await rule(served, statements_max=1, classes={"normal": {"queue_max": 0}})
    async with connections(served, 2) as (first, second):
        await first.execute("begin")
        with pytest.raises(psycopg.errors.TooManyConnections):
            await sync_and_execute(second)
        await first.execute("commit")
        assert await fetch(second, "select 2") == 2


async def sync_and_execute(connection: Connection) -> None:
    async with connection.pipeline() as pipeline:
        await pipeline.sync()
        await connection.execute("select 1")


async def test_who_holds_what_others_wait_for_is_let_in(served: Cluster) -> None:
    await rule(served, statements_max=1)
    async with connections(served, 2) as (owner, other):
        await owner.execute("select pg_advisory_lock(11)")
        waits = asyncio.create_task(other.execute("select pg_advisory_lock(11)"))
        await until(lambda: inside(served) == 1)
        assert await fetch(owner, "select pg_advisory_unlock(11)") is True
        await waits
        assert inside(served) == 0


async def test_a_transaction_that_was_lost_is_rolled_back_without_a_place(pair: Pair) -> None:
    cluster = pair.cluster
    await rule(cluster, statements_max=1, ramp_start_percent=100, classes={"normal": {"queue_max": 0}})
    async with connections(cluster, 2) as (unlucky, other):
        await unlucky.execute("begin")
        await unlucky.execute("select 1")
        await pair.fail_over()
        await other.execute("begin")
        with pytest.raises(psycopg.OperationalError):
            await unlucky.execute("select 2")
        await unlucky.execute("rollback")
        with pytest.raises(psycopg.errors.TooManyConnections):
            await unlucky.execute("select 3")
        await other.execute("commit")
        assert await fetch(unlucky, "select 4") == 4


async def test_classes_keep_each_other_out_of_the_way(served: Cluster) -> None:
    """Reports fill their part and no more; what is critical goes past them."""
    reports = {"application_names": ["reports"], "most_percent": 50}
    await rule(served, statements_max=2, classes={"background": reports, "critical": {"application_names": ["pay"]}})
    async with (
        connections(served, 3, application_name="reports") as slow,
        connections(served, 1, application_name="pay") as (pay,),
    ):
        await slow[0].execute("begin")
        blocked = [asyncio.create_task(c.execute("select 1")) for c in slow[1:]]
        await until(lambda: waiting(served) == 2)
        for number in range(20):
            assert await fetch(pay, "select %s::int", number) == number
        assert not any(task.done() for task in blocked)
        # The policy is changed while they wait: nobody is lost, and sessions belong to their new class at once.
        await rule(served, statements_max=2, classes={"background": {**reports, "most_percent": 100}})
        await asyncio.gather(*blocked)
        await slow[0].execute("commit")
        assert admission(served).status()["classes"]["background"]["inside"] == 0


async def test_without_admission_nothing_is_bounded(served: Cluster) -> None:
    await rule(served, statements_max=1, admission=False)
    async with connections(served, 3) as made:
        for connection in made:
            await connection.execute("begin")
        assert inside(served) == 3
        for connection in made:
            await connection.execute("commit")


async def load(connections: list[Connection], stop: asyncio.Event) -> int:
    """Statements without a pause on every connection; returns how many succeeded."""

    async def one(connection: Connection) -> int:
        done = 0
        while not stop.is_set():
            try:
                await connection.execute("select pg_sleep(0.02)")
                done += 1
            except psycopg.OperationalError:
                continue  # it was under way when the primary died
        return done

    return sum(await asyncio.gather(*(one(connection) for connection in connections)))


def allowed(gate: Gate) -> int:
    """Statements that may be inside now: those within the limit, and those that have been inside for long."""
    return (60 if gate.limit is None else gate.limit) + sum(len(line.long) for line in gate.lines.values())


ACTIVE = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(0.02)'"


async def test_a_fresh_primary_meets_the_backlog_in_steps(pair: Pair) -> None:
    cluster, stop = pair.cluster, asyncio.Event()
    await rule(cluster, long_ms=LONG_MS, ramp_window_s=4)  # so that a machine that is slow now does not take minutes
    async with connections(cluster, 60) as made:
        loading = asyncio.create_task(load(made, stop))
        await until(lambda: admission(cluster).status()["usual"] >= 40)
        await pair.fail_over()
        gate, seen = admission(cluster).gate, []
        with pair.n2.session("postgres") as server:
            while admission(cluster).ramp is not None:
                # What the server itself says, beside what was allowed before and after it was asked.
                before = allowed(gate)
                ((active,),) = await asyncio.to_thread(lambda: server.execute(ACTIVE).fetchall())
                seen.append((active, max(before, allowed(gate))))
        assert gate.limit is None
        stop.set()
        assert await loading > 0
    assert len(seen) > 20
    # pg_stat_activity looks at one session after the other: one that ended and one that began meanwhile both count.
    assert sum(active > most for active, most in seen) < len(seen) / 10
    assert [(active, most) for active, most in seen if active > 2 * most] == []
    assert min(most for _, most in seen) <= 8
    told = await ramps_told(cluster)
    assert (told[0].kind, told[0].detail["percent"], told[-1].kind) == ("ramp.begun", 10, "ramp.ended")
    assert {e.kind for e in told[1:-1]} == {"ramp.step"}
    assert {e.rule for e in told[1:]} <= RULES.keys()


async def ramps_told(cluster: Cluster) -> list[Event]:
    """What the journal has of ramps, once it has the end of one."""
    while True:
        told = [e for e in await cluster.store.read_events() if e.kind.startswith("ramp.")]
        if told and told[-1].kind == "ramp.ended":
            return told
        await asyncio.sleep(0.05)  # the journal is read, not watched


async def test_a_person_may_hold_and_end_a_ramp(pair: Pair) -> None:
    cluster, stop = pair.cluster, asyncio.Event()
    await rule(cluster, long_ms=LONG_MS, ramp_start_percent=1)  # many steps: time enough to say so
    async with connections(cluster, 60) as made:
        loading = asyncio.create_task(load(made, stop))
        await until(lambda: admission(cluster).status()["usual"] >= 40)
        await pair.fail_over()
        for wrong in (b"{}", RampOrder(1, Order.END).to_json()):  # unreadable, and meant for another epoch
            await cluster.store.put(KEYS.ramp_order, wrong)
        await cluster.store.put(KEYS.ramp_order, RampOrder(2, Order.HOLD).to_json())
        await until(lambda: (now := admission(cluster).ramp) is not None and now.is_held)
        limit = admission(cluster).gate.limit
        assert limit is not None
        await asyncio.sleep(1.5)  # a healthy ramp would have gone on
        assert admission(cluster).gate.limit == limit
        await cluster.store.put(KEYS.ramp_order, RampOrder(2, Order.END).to_json())
        await until(lambda: admission(cluster).ramp is None)
        stop.set()
        await loading


async def test_those_who_wait_to_be_let_in_are_held_when_the_server_is_lost(pair: Pair) -> None:
    cluster = pair.cluster
    await rule(cluster, statements_max=1, ramp_start_percent=100)
    async with connections(cluster, 4) as made:
        running = asyncio.create_task(made[0].execute("select pg_sleep(60)"))
        await wait_until_active(pair.n1, "select pg_sleep(60)")
        tasks = [asyncio.create_task(fetch(c, "select inet_server_port()")) for c in made[1:]]
        await until(lambda: waiting(cluster) == 3)
        await pair.lose_primary()
        with pytest.raises(psycopg.OperationalError):
            await running
        # One may have been let in between the end of one server session and that of the next: it is told, not held.
        await until(lambda: pair.held() == sum(not task.done() for task in tasks))
        assert inside(cluster) == 0
        await pair.promote()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result == pair.n2.port or isinstance(result, psycopg.OperationalError)
        assert inside(cluster) == waiting(cluster) == 0
