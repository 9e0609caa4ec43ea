"""Each node streams through a slot of its own: log is kept for it, and one connection of it is let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from holdfast.model.register import Member
from holdfast.model.timeouts import Timeouts
from holdfast.node.clock import monotonic_ms
from holdfast.node.peers import Peers
from holdfast.node.reach import HttpReach
from holdfast.node.slots import SlotKeeper
from holdfast.postgres.server import Server
from holdfast.store.journal import Journal
from holdfast.store.memory import MemoryStore
from tests.core.builders import observation, peer, register
from tests.postgres.lab import Lab, new_incarnation
from tests.postgres.relay import Relay

pytestmark = pytest.mark.live

SENDERS = "SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'b\\_%'"
REFUSED = 'replication slot "holdfast_b" is active for PID'


async def test_slots_are_made_advanced_and_dropped(lab: Lab) -> None:
    primary = await lab.primary()
    standby, _ = await lab.standby("b")
    for server in (primary, standby):
        await server.ensure_slots(["a", "b", "c"])
        await server.ensure_slots(["a", "b", "c"])
    names = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"
    assert await lab.execute("a", names) == [("holdfast__rewind",), ("holdfast_b",), ("holdfast_c",)]
    assert await lab.execute("b", names) == [("holdfast_a",), ("holdfast_c",)]
    await lab.execute("a", "CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
    await lab.until_equal(primary, standby)
    flushed = await primary.flushed_lsn()
    restart = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'holdfast_c'"
    for server, node in ((primary, "a"), (standby, "b")):
        await server.advance_slots({"c": flushed, "unknown": flushed})
        assert await lab.execute(node, restart) == [(str(flushed),)]
        await server.advance_slots({"c": type(flushed)(flushed - 100)})
        assert await lab.execute(node, restart) == [(str(flushed),)]
        await server.ensure_slots(["a", "b"])
        assert await lab.execute(node, restart) == []
    of_replica = restart.replace("holdfast_c", "holdfast_b")
    await lab.until_rows("a", f"SELECT 1 FROM ({of_replica}) s (lsn) WHERE lsn::pg_lsn >= '{flushed}'")


async def test_nobody_streams_without_a_slot(lab: Lab) -> None:
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    await standby.detach()
    await lab.until_rows("a", SENDERS, present=False)
    await primary.ensure_slots([])
    await standby.follow(lab.upstream("a"), member)
    await lab.until_log("b", 'replication slot "holdfast_b" does not exist')
    assert await lab.execute("a", f"{SENDERS} AND state = 'streaming'") == []  # one is there while it is refused
    await primary.ensure_slots(["b"])
    await lab.until(standby, lambda v: v.streaming)
    assert list(await primary.walsenders()) == ["b"]


async def test_a_standby_of_an_older_agent_is_seen_to_stream_through_no_slot(lab: Lab) -> None:
    """And following, by an agent that has taken it over with its server running, brings it to its slot."""
    primary = await lab.primary()
    standby, member = await lab.standby("b")
    conf = lab.settings_of("b").data_dir / "holdfast.conf"
    conf.write_text(conf.read_text().replace("primary_slot_name = 'holdfast_b'", "primary_slot_name = ''"))
    await lab.execute("b", "SELECT pg_reload_conf()")
    await lab.until(standby, lambda v: v.streaming and not v.through_slot)
    await lab.until_rows("a", "SELECT 1 FROM pg_replication_slots WHERE active", present=False)
    updated = lab.server("b")
    assert await updated.adopt()
    await updated.follow(lab.upstream("a"), member)
    await lab.until(updated, lambda v: v.streaming and v.through_slot)
    await lab.until_rows("a", "SELECT 1 FROM pg_replication_slots WHERE active")
    assert list(await primary.walsenders()) == ["b"]


async def test_a_slot_that_was_lost_is_made_anew(lab: Lab) -> None:
    small = {"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0", "max_wal_size": "32MB", "shared_buffers": "16MB"}
    primary = await lab.primary(parameters=small)
    standby, _ = await lab.standby("b")
    await primary.ensure_slots(["b", "c"])
    await lab.execute("a", "CREATE TABLE t (i int)")
    lost = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'holdfast_c' AND wal_status = 'lost'"
    async with asyncio.timeout(60):
        while not await lab.execute("a", lost):
            await lab.execute("a", "INSERT INTO t VALUES (1)")
            await lab.execute("a", "SELECT pg_switch_wal()")
            await lab.until_equal(primary, standby)
            await lab.execute("a", "CHECKPOINT")
    await primary.ensure_slots(["b", "c"])
    assert await lab.execute("a", lost) == []
    assert await lab.execute("a", lost.replace("'lost'", "'reserved'")) == [(1,)]


@dataclass
class Broken:
    """A standby that has lost its connection, of which the primary does not know."""

    primary: Server
    standby: Server
    member: Member


@pytest.fixture
async def broken(lab: Lab) -> AsyncIterator[Broken]:
    primary = await lab.primary()
    standby = lab.server("b")
    member = Member("b", new_incarnation())
    await lab.make("b", standby)
    await standby.set_incarnation(member.incarnation)
    async with Relay(lab.upstream("a")).running() as relay:
        await lab.join(standby, "a", member, relay.upstream)
        await lab.until_rows("a", f"{SENDERS} AND state = 'streaming'")
        relay.sever()
        await lab.until_log("b", REFUSED)
        yield Broken(primary, standby, member)


async def test_a_broken_connection_is_given_up_in_time(lab: Lab, broken: Broken) -> None:
    """The walsender gives it up as soon as a walreceiver would, whatever the primary's own setting is."""
    assert await lab.execute("a", "SHOW wal_sender_timeout") == [("10s",)]
    (before,) = (await broken.primary.walsenders()).values()
    await lab.until(broken.standby, lambda v: v.streaming)
    (after,) = (await broken.primary.walsenders()).values()
    assert after.pid != before.pid


async def test_a_walsender_whose_output_nobody_takes_can_be_ended(lab: Lab, broken: Broken) -> None:
    (stuck,) = (await broken.primary.walsenders()).values()
    await lab.execute("a", "CREATE TABLE t AS SELECT repeat('x', 100) FROM generate_series(1, 200000)")
    ended = 0
    while (await broken.primary.walsenders()).get("b", stuck).pid == stuck.pid:
        assert ended < 20
        await broken.primary.end_walsender("b", stuck)
        ended += 1
        await asyncio.sleep(0.05)
    await lab.until(broken.standby, lambda v: v.streaming)


async def test_the_keeper_ends_what_its_standby_has_given_up(lab: Lab, broken: Broken) -> None:
    timeouts = Timeouts(heartbeat_interval_ms=400)
    store = MemoryStore("main")
    journal = Journal(store, "a", timeouts)
    peers = Peers("a", timeouts, HttpReach(timeouts, "token"), dict, lambda: None)
    nodes = replace(register(), voters=("a", "b"))
    leader = observation(Member("a", "00000001"), server=await broken.primary.view(), register=nodes)
    keeper = SlotKeeper(broken.primary, timeouts, peers, journal, lambda: leader)
    await keeper.ensure(leader)
    (stale,) = (await broken.primary.walsenders()).values()

    async def ask() -> None:
        while True:
            view = await broken.standby.view()
            said = {"status": view.status, "streaming": view.streaming}
            peers.known["b"] = peer(broken.member, monotonic_ms(), **said)
            await asyncio.sleep(0.1)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [group.create_task(keeper.run()), group.create_task(ask())]
        await lab.until(broken.standby, lambda v: v.streaming)
        for task in tasks:
            task.cancel()
    await peers.close()
    await store.close()
    (fresh,) = (await broken.primary.walsenders()).values()
    assert fresh.pid != stale.pid
    assert [(e.kind, e.detail["node"]) for e in journal.recent] == [("walsender.ended", "b")]
    assert "terminating connection due to administrator command" in lab.server_log("a")
