"""Reads of the writable port on standbys: who answers, and that nobody reads less than what he has written."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import psycopg
import pytest

from holdfast.model.keys import Keys
from holdfast.model.policy import Policy, Route
from holdfast.model.register import NodeState
from holdfast.proxy.lane import Purpose
from holdfast.proxy.routed import Routed
from holdfast.wire.readonly import READING
from tests.proxy.cluster import Pair, fetch, until
from tests.proxy.reading import AUTO, POOLINGS, on_standby, pair, settled, the_replica, there, tried_there
from tests.proxy.servers import USER, Server

pytestmark = pytest.mark.live


__all__ = ["pair"]
WHO = "select inet_server_port()"


@POOLINGS
async def test_reads_go_to_the_standby_and_all_else_to_the_primary(pair: Pair, pooling: str) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        assert await there(pair, connection, "select balance from ledger") == 0
        assert await there(pair, connection, "select balance from ledger where account = %s", 1) == 0
        assert len(pair.proxy.lanes[Purpose.WRITE].pools.status()) == (pooling == "transaction")
        assert await on_standby(pair, connection, "select pg_is_in_recovery()") == (False, False)
        assert await on_standby(pair, connection, "select 1 from ledger for update") == (1, False)
        async with connection.transaction():
            assert await on_standby(pair, connection, "select 1") == (1, False)


@POOLINGS
async def test_prepared_statements_are_known_everywhere(pair: Pair, pooling: str) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        connection.prepare_threshold = 0
        served = 0
        for n in range(20):
            value, was_standby = await on_standby(pair, connection, "select %s::int + balance from ledger", n)
            assert value == n
            served += was_standby
            if n % 7 == 3:
                await connection.execute("update ledger set balance = balance")
            await asyncio.sleep(0.02)  # a client that thinks
        assert served


async def test_a_session_reads_what_it_has_written(pair: Pair) -> None:
    """Whether the standby replays or not; while it does not the primary answers."""
    counters = pair.proxy.replicas.counters
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        for n in range(1, 40):
            if n == 10:
                await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
            if n == 20:
                await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")
            await connection.execute("update ledger set balance = %s", (n,))
            if n % 3:
                await asyncio.sleep(0.01)  # a client that thinks
            assert await fetch(connection, "select balance from ledger") == n
        await settled(pair, connection)
        assert await there(pair, connection, "select balance from ledger") == 39
    assert counters.on_primary_written > 0


async def test_another_session_is_shown_what_its_token_names(pair: Pair) -> None:
    counters = pair.proxy.replicas.counters
    await pair.cluster.store.put(Keys("main").policy, Policy(read_wait_ms=10_000).to_json())
    async with await pair.cluster.connect() as writer, await pair.cluster.connect(options=AUTO) as reader:
        await settled(pair, reader)
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
        await writer.execute("update ledger set balance = 7")
        token = await fetch(writer, "show holdfast.lsn")
        assert token.startswith("1:0/")
        assert await there(pair, reader, "select balance from ledger") == 0
        await reader.execute(f"set holdfast.wait_for = '{token}'")
        reading = asyncio.create_task(on_standby(pair, reader, "select balance from ledger"))
        await until(lambda: counters.waited == 1)
        assert not reading.done()
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")
        assert (await reading)[0] == 7
        assert counters.waited_in_vain == 0


async def test_a_token_is_waited_for_no_longer_than_the_policy_says(pair: Pair) -> None:
    counters = pair.proxy.replicas.counters
    await pair.cluster.store.put(Keys("main").policy, Policy(read_wait_ms=50).to_json())
    async with await pair.cluster.connect() as writer, await pair.cluster.connect(options=AUTO) as reader:
        await settled(pair, reader)
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
        await writer.execute("update ledger set balance = 8")
        await reader.execute(f"set holdfast.wait_for = '{await fetch(writer, 'show holdfast.lsn')}'")
        assert await on_standby(pair, reader, "select balance from ledger") == (8, False)
        assert counters.waited_in_vain == 1
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"holdfast\.wait_for"):
            await reader.execute("set holdfast.wait_for = 'yesterday'")
        await reader.execute("reset holdfast.wait_for")
        assert counters.waited_in_vain == 1
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")


async def test_a_wait_can_be_cancelled(pair: Pair) -> None:
    counters = pair.proxy.replicas.counters
    await pair.cluster.store.put(Keys("main").policy, Policy(read_wait_ms=60_000).to_json())
    async with await pair.cluster.connect(options=AUTO) as reader:
        await settled(pair, reader)
        await reader.execute("set holdfast.wait_for = '1:FF/0'")
        reading = asyncio.create_task(fetch(reader, "select 1"))
        await until(lambda: counters.waited == 1)
        await reader.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await reading
        await reader.execute("set holdfast.wait_for = ''")
        await settled(pair, reader)


async def test_a_read_on_a_standby_can_be_cancelled(pair: Pair) -> None:
    async with await pair.cluster.connect(options=AUTO) as reader:
        await settled(pair, reader)
        slow = "select count(*) from generate_series(1, 10000000000) as many(n)"
        reading = asyncio.create_task(fetch(reader, slow))
        await until(lambda: bool(the_replica(pair).reading))
        await reader.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await reading
        assert await fetch(reader, "select 1") == 1


@POOLINGS
async def test_what_a_session_has_set_holds_on_the_standby(pair: Pair, pooling: str) -> None:
    async with await pair.cluster.connect(options=AUTO) as one, await pair.cluster.connect(options=AUTO) as two:
        await one.execute("create schema own")
        await one.execute("create table own.ledger as select 100 as balance")
        for connection in (one, two):
            await settled(pair, connection)
        await one.execute("set search_path = own, public")
        await settled(pair, one)
        for _ in range(3):
            assert await there(pair, one, "select balance from ledger") == 100
            assert await there(pair, two, "select balance from ledger") == 0
        await one.execute("set datestyle = 'German'")
        await settled(pair, one)
        assert await there(pair, one, "select date '2030-02-01'::text") == "01.02.2030"
        assert await there(pair, two, "select date '2030-02-01'::text") == "2030-02-01"


async def test_who_has_something_of_his_own_stays_with_the_primary(pair: Pair) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        await connection.execute("create temp table ledger as select 5 as balance")
        for _ in range(3):
            await asyncio.sleep(0.02)  # it would be long enough for the standby
            assert await on_standby(pair, connection, "select balance from ledger") == (5, False)
        await connection.execute("discard all")
        await settled(pair, connection)
        assert await there(pair, connection, "select balance from ledger") == 0


async def test_what_a_standby_cannot_do_the_primary_does(pair: Pair) -> None:
    """The client does not notice, and the same statement is not tried again at once."""
    counters = pair.proxy.replicas.counters
    async with await pair.cluster.connect(options=AUTO) as connection:
        await connection.execute("create unlogged table passing as select 3 as a")
        await connection.execute("create sequence counted")
        await connection.execute("create view hidden as select nextval('counted') as a")
        await settled(pair, connection)
        assert await tried_there(pair, connection, "select a from passing") == 3
        redone = counters.redone
        assert await on_standby(pair, connection, "select a from passing") == (3, False)
        assert counters.redone == redone
        first = await tried_there(pair, connection, "select a from hidden")
        redone = counters.redone
        assert [await fetch(connection, "select a from hidden") for _ in range(3)] == [first + n for n in (1, 2, 3)]
        assert counters.redone == redone
        with pytest.raises(psycopg.errors.UndefinedTable):
            await connection.execute("select * from nowhere")
        assert await fetch(connection, "select 1") == 1


async def test_a_session_reads_what_a_view_has_written_for_it(pair: Pair) -> None:
    """Where a standby was not asked, and where it failed before it came to the write."""
    async with await pair.cluster.connect(options=AUTO) as connection:
        await connection.execute("create table audit (a int)")
        await connection.execute("create unlogged table passing as select 3 as a")
        for name, body in (("plain", ""), ("failing", "perform a from passing; ")):
            await connection.execute(
                f"create function {name}_noting() returns int language plpgsql as "
                f"$$ begin {body} insert into audit values (1); return 1; end $$".encode()
            )
            await connection.execute(f"create view {name} as select {name}_noting() as a".encode())
        await settled(pair, connection)
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
        assert await tried_there(pair, connection, "select a from failing") == 1
        assert await fetch(connection, "select count(*) from audit") == 1
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")
        await settled(pair, connection)
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
        await connection.execute("set holdfast.route = 'primary'")
        await fetch(connection, "select a from plain")
        await connection.execute("set holdfast.route = 'auto'")
        assert await fetch(connection, "select count(*) from audit") == 2
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")


async def test_large_answers_and_errors_in_the_middle_of_them(pair: Pair) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        before = pair.proxy.replicas.counters.on_standbys
        cursor = await connection.execute("select repeat('x', 300000), n from generate_series(1, 30) as many(n)")
        assert [row[1] for row in await cursor.fetchall()] == list(range(1, 31))
        assert pair.proxy.replicas.counters.on_standbys == before + 1
        many = "from generate_series(1, 3000) as many(n)"
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute(f"select repeat('x', 1000), 1 / (2000 - n) {many}".encode())
        assert await fetch(connection, "select 1") == 1


async def test_a_connection_is_good_for_others_after_an_answer_that_was_too_large_for_its_client(pair: Pair) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        for _ in range(3):
            assert len(await there(pair, connection, "select repeat('x', 5000000)")) == 5_000_000
            assert await there(pair, connection, "select balance from ledger") == 0


async def test_a_lost_standby_is_not_noticed(pair: Pair) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        slow = "select count(*) from generate_series(1, 3000000) as many(n)"
        reading = asyncio.create_task(fetch(connection, slow))
        await until(lambda: bool(the_replica(pair).reading))
        await asyncio.to_thread(pair.n2.kill)
        assert await reading == 3_000_000
        assert await on_standby(pair, connection, "select balance from ledger") == (0, False)


async def test_a_read_does_not_wait_for_a_lock_that_is_held_by_replay_that_stands_still(pair: Pair) -> None:
    policy = Policy(read_lag_max_ms=300, read_back_ms=100)
    await pair.cluster.store.put(Keys("main").policy, policy.to_json())
    locked = "select exists (select from pg_locks where mode = 'AccessExclusiveLock' and relation::regclass::text = "
    async with await pair.cluster.connect(options=AUTO) as reader, await pair.cluster.connect() as writer:
        await writer.execute("create table flushed as select 1 as a")
        await settled(pair, reader)
        async with writer.transaction():
            await writer.execute("lock table ledger in access exclusive mode")
            await asyncio.to_thread(pair.n1.query, "update flushed set a = 2", "app")
            await until(lambda: asyncio.to_thread(lambda: bool(pair.n2.query(f"{locked}'ledger')", "app")[0][0])))
            await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
            served = the_replica(pair).served
            reading = asyncio.create_task(fetch(reader, "select balance from ledger"))
            await until(lambda: bool(the_replica(pair).reading))
        await writer.execute("update ledger set balance = 6")
        assert await reading == 6
        assert the_replica(pair).served == served
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")


async def test_reads_go_on_while_no_primary_serves(pair: Pair) -> None:
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        await asyncio.to_thread(pair.n1.kill)
        assert await there(pair, connection, "select balance from ledger") == 0
        writing = asyncio.create_task(connection.execute("update ledger set balance = 4"))
        await pair.cluster.open_epoch()
        await until(lambda: pair.held() == 1)
        await pair.promote()
        await writing
        assert await fetch(connection, "select balance from ledger") == 4


async def test_a_session_may_begin_and_end_it_at_any_time(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        for _ in range(2):
            assert not (await on_standby(pair, connection, "select 1"))[1]
        await connection.execute("set holdfast.route = auto")
        (relay,) = pair.proxy._relays.values()
        assert isinstance(relay, Routed)
        await settled(pair, connection)
        await connection.execute("begin")
        await connection.execute("set holdfast.route = 'primary'")
        await connection.execute("rollback")
        await settled(pair, connection)
        await connection.execute("set holdfast.route = 'primary'")
        await asyncio.sleep(0.05)  # it would be long enough for the standby
        assert await on_standby(pair, connection, "select balance from ledger") == (0, False)


async def test_the_policy_names_users_and_databases(pair: Pair) -> None:
    policy = Policy(route_by={f"{USER}@app": Route.AUTO})
    await pair.cluster.store.put(Keys("main").policy, policy.to_json())
    await until(lambda: pair.proxy.routing.policy == policy)
    async with await pair.cluster.connect() as connection:
        await settled(pair, connection)
    async with await pair.cluster.connect(options="-c holdfast.route=primary") as connection:
        assert not (await on_standby(pair, connection, "select 1"))[1]


async def test_a_standby_that_falls_behind_leaves_and_comes_back(pair: Pair) -> None:
    """On both ports: sessions of the read-only one move to the primary meanwhile."""
    policy = Policy(read_lag_max_ms=300, read_back_ms=100)
    await pair.cluster.store.put(Keys("main").policy, policy.to_json())
    async with await pair.cluster.connect(read=True) as reader, await pair.cluster.connect() as writer:
        assert await fetch(reader, WHO) == pair.n2.port
        await until(lambda: bool(pair.proxy.replicas._members) and the_replica(pair).standing.is_in)
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
        await writer.execute("update ledger set balance = 9")
        await until(lambda: not the_replica(pair).standing.is_in)
        assert await fetch(reader, WHO) == pair.n1.port
        assert await fetch(reader, "select balance from ledger") == 9
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await reader.execute("update ledger set balance = 1")
        async with await pair.cluster.connect(read=True) as late:
            assert await fetch(late, WHO) == pair.n1.port
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")
        await until(lambda: the_replica(pair).standing.is_in)
        assert await fetch(reader, WHO) == pair.n2.port
        status = pair.proxy.status()["reads"]
        assert isinstance(status, dict)
        assert status["standbys"][0]["left"] == 1


@pytest.mark.parametrize("bytes_written", [10, 20_000])
async def test_a_quiet_cluster_keeps_its_standby_while_a_transaction_goes_on(pair: Pair, bytes_written: int) -> None:
    """What it has written is not flushed, or to the middle of a record; and one that is behind leaves even so."""
    replicas = pair.proxy.replicas
    policy = Policy(read_lag_max_ms=300, read_back_ms=100)
    await pair.cluster.store.put(Keys("main").policy, policy.to_json())
    async with await pair.cluster.connect(read=True) as reader, await pair.cluster.connect() as writer:
        await until(lambda: bool(replicas._members) and the_replica(pair).standing.is_in)
        await asyncio.to_thread(
            pair.n1.query,
            "alter table ledger add noted text; alter table ledger alter noted set storage external",
            "app",
        )
        await asyncio.to_thread(pair.n1.query, "checkpoint")
        await writer.execute("begin")
        await writer.execute("insert into ledger select 3, 0, repeat('x', %s)", (bytes_written,))
        sql = "select pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn() between 1 and 8192"
        await asyncio.to_thread(pair.n1.wait_for, sql)
        samples = replicas.counters.samples
        await until(lambda: replicas.counters.samples > samples + 12)
        assert the_replica(pair).standing.left == 0
        assert await fetch(reader, WHO) == pair.n2.port
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_pause()")
        async with await pair.cluster.connect() as other:
            await other.execute("update ledger set balance = 9")
        await until(lambda: not the_replica(pair).standing.is_in)
        assert await fetch(reader, WHO) == pair.n1.port
        await asyncio.to_thread(pair.n2.query, "select pg_wal_replay_resume()")
        await until(lambda: the_replica(pair).standing.is_in)


async def test_a_standby_that_has_all_up_to_the_end_of_a_segment_shows_it(pair: Pair) -> None:
    """The primary's own position is behind the header of the next segment by then."""
    counters = pair.proxy.replicas.counters
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        await connection.execute("update ledger set balance = 3")
        await asyncio.to_thread(pair.n1.query, "select pg_switch_wal()")
        await connection.execute(f"set holdfast.wait_for = '{await fetch(connection, 'show holdfast.lsn')}'")
        assert await there(pair, connection, "select balance from ledger") == 3
        assert counters.waited_in_vain == 0


async def test_sessions_of_the_read_only_port_are_spread(pair: Pair, make_server: Any) -> None:
    n3: Server = await asyncio.to_thread(make_server, "n3", pair.n1)
    sql = "select count(*) = 2 from pg_stat_replication where state = 'streaming'"
    await asyncio.to_thread(pair.n1.wait_for, sql)
    await pair.cluster.record(n3, NodeState.STANDBY, 1)
    await until(lambda: len(pair.proxy.routing.standbys()) == 2)
    ports, connections = [], []
    try:
        for _ in range(6):
            connections.append(await pair.cluster.connect(read=True))
            ports.append(await fetch(connections[-1], WHO))
    finally:
        for connection in connections:
            await connection.close()
    assert sorted(ports) == sorted([pair.n2.port, n3.port] * 3)


async def test_nobody_is_asked_for_positions_unless_somebody_reads_from_standbys(pair: Pair) -> None:
    async with await pair.cluster.connect() as connection:
        await connection.execute("update ledger set balance = 0")
        assert type(next(iter(pair.proxy._relays.values()))).__name__ == "Relay"
    assert pair.proxy.replicas.counters.samples == 0
    assert pair.proxy.lanes[Purpose.READ].replicas is pair.proxy.lanes[Purpose.WRITE].replicas


async def test_an_unnamed_statement_that_a_standby_parsed_is_the_primarys_as_well(pair: Pair) -> None:
    """Parse, Bind and Execute in one batch, read on the standby; then Bind and Execute alone, in a transaction."""
    async with await pair.cluster.connect(options=AUTO) as connection:
        await settled(pair, connection)
        counters = pair.proxy.replicas.counters
        before = counters.on_standbys
        sock = socket.socket(fileno=connection.pgconn.socket)
        try:
            parse = _message(b"P", b"\0select balance + 40 from ledger\0\0\0")
            run = _message(b"B", bytes(8)) + _message(b"E", bytes(5)) + _message(b"S")
            while counters.on_standbys == before:
                assert b"40" in await asyncio.to_thread(_ask, sock, parse + run)
            begin = _message(b"P", b"b\0begin\0\0\0") + _message(b"B", b"\0b\0" + bytes(6)) + _message(b"E", bytes(5))
            await asyncio.to_thread(_ask, sock, begin + _message(b"S"))
            assert b"40" in await asyncio.to_thread(_ask, sock, run)
            assert counters.on_standbys == before + 1
        finally:
            sock.detach()


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _ask(sock: socket.socket, data: bytes) -> bytes:
    """Send a batch; what comes up to its ReadyForQuery."""
    sock.setblocking(True)
    sock.sendall(data)
    got = b""
    while got[-6:-1] != b"Z\0\0\0\x05":
        more = sock.recv(65536)
        assert more
        got += more
    return got


async def test_what_is_taken_for_reading_is_immutable_or_stable(pair: Pair) -> None:
    """By the catalog of PostgreSQL itself: all functions of such a name, in the only schema that counts."""
    sql = (
        "select coalesce(string_agg(distinct proname, ' '), '') from pg_proc "
        f"where proname = any('{{{','.join(sorted(READING))}}}') and pronamespace = 'pg_catalog'::regnamespace "
        "and provolatile not in ('i', 's')"
    )
    assert await asyncio.to_thread(pair.n1.query, sql, "app") in ("", [("",)], [""])


async def test_settings_that_were_told_before_a_failed_read_are_known_to_be_there(pair: Pair) -> None:
    """On connections that are shared: what the next session gets is its own."""
    async with await pair.cluster.connect(options=AUTO) as one, await pair.cluster.connect(options=AUTO) as two:
        await one.execute("create unlogged table passing as select date '2030-02-01' as day")
        await one.execute("set datestyle = 'German'")
        for connection, said in ((one, "01.02.2030"), (two, "2030-02-01")):
            assert await there(pair, connection, "select date '2030-02-01'::text") == said
        assert await tried_there(pair, one, "select day::text from passing") == "01.02.2030"
        for connection, said in ((two, "2030-02-01"), (one, "01.02.2030"), (two, "2030-02-01")):
            assert await there(pair, connection, "select date '2030-02-01'::text") == said
