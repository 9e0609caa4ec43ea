"""A session in states that are rare: what is let go of, what is kept, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from holdfast.model.suspect import Standing
from holdfast.proxy.quarantine import Custody
from holdfast.wire import messages as m
from holdfast.wire.fingerprint import fingerprint
from tests.proxy.sinks import World
from tests.proxy.test_guard import executed, parsed

SUSPECT = b"select 1"
ASKED = m.query(SUSPECT)
READY = m.ready_for_query(m.IDLE)


@asynccontextmanager
async def world_of(pooling: str, *, guard: bool = False) -> AsyncIterator[World]:
    world = World(pooling, fast=True, guard=guard)
    try:
        yield world
    finally:
        world.leave()
        world.close()
        await asyncio.sleep(0)


def on_trial(world: World) -> Custody:
    """The statement is a suspect, and another session runs it now."""
    world.suspect(SUSPECT, Standing.ALONE)
    other = Custody()
    permit = world.lane.admission.permit("app", "app", "other")
    assert world.lane.quarantine.ask(other, SUSPECT, permit, may_wait=True, is_run=True) is None
    return other


def inside(world: World) -> object:
    """How many the quarantine counts as let in."""
    return {entry["id"]: entry["inside"] for entry in world.lane.quarantine.status()}[fingerprint(SUSPECT).id]


async def a_few_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def told(world: World, data: bytes) -> int:
    """How often any server was sent these bytes."""
    return sum(bytes(backend.sink.written).count(data) for backend in world.backends)


async def test_a_suspect_in_line_whose_server_is_lost_still_has_its_turn() -> None:
    async with world_of("session") as world:
        other = on_trial(world)
        world.send(ASKED, 0)
        await a_few_turns()
        world.lose()
        assert world.lane.quarantine.status()[0]["waiting"] == 1
        world.lane.quarantine.left(other)
        await a_few_turns()
        assert inside(world) == 1, "and waits for a server now"
        world.attach()
        assert told(world, ASKED) == 1
        world.heard()
        world.answer(100)
        assert bytes(world.sink.written).endswith(READY)
        assert inside(world) == 0


@pytest.mark.parametrize("asked", [ASKED, parsed(b"", SUSPECT) + executed(b"") + m.SYNC_MESSAGE], ids=["Q", "P"])
async def test_a_suspect_that_the_gate_refuses_is_not_counted_as_let_in(asked: bytes) -> None:
    async with world_of("session") as world:
        world.suspect(SUSPECT, Standing.ALONE)
        admission = world.lane.admission
        line = admission.gate.lines["normal"]
        line.settings = line.settings.model_copy(update={"queue_max": 0})
        admission.gate.limit = 1
        assert admission.enter(admission.permit("app", "app", "other"))
        world.send(asked, 0)
        assert bytes(world.sink.written).endswith(READY)
        assert told(world, SUSPECT) == 0
        assert inside(world) == 0


async def test_a_suspect_that_waits_at_the_gate_in_vain_is_not_counted_as_let_in() -> None:
    async with world_of("session") as world:
        world.suspect(SUSPECT, Standing.ALONE)
        admission = world.lane.admission
        admission.gate.limit = 1
        assert admission.enter(admission.permit("app", "app", "other"))
        line = admission.gate.lines["normal"]
        line.settings = line.settings.model_copy(update={"wait_max_ms": 0})
        world.send(ASKED, 0)
        assert inside(world) == 1
        admission._look()
        await a_few_turns()
        assert bytes(world.sink.written).endswith(READY)
        assert inside(world) == 0


@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_what_a_client_leaves_running_keeps_its_places_after_a_goodbye_too(pooling: str) -> None:
    async with world_of(pooling) as world:
        world.suspect(SUSPECT, Standing.ALONE)
        world.send(ASKED + m.TERMINATE_MESSAGE, 0)
        world.leave()  # the end of the client's connection
        gate = world.lane.admission.gate
        assert (gate.inside, inside(world), len(world.lane.orphans)) == (1, 1, 1)
        world.heard()
        world.answer(100)
        assert (gate.inside, inside(world), len(world.lane.orphans)) == (0, 0, 0)


async def test_a_suspect_that_was_let_in_and_not_sent_yet_has_not_ended() -> None:
    async with world_of("session") as world:
        other = on_trial(world)
        world.send(m.query("insert into t values (1)"), 0)
        world.send(ASKED, 0)
        world.lane.quarantine.left(other)
        world.heard()
        world.answer(100)  # to what was sent before, in the turn in which the suspect was let in
        assert inside(world) == 1
        await a_few_turns()
        assert told(world, ASKED) == 1


@pytest.mark.parametrize("is_executed", [False, True])
async def test_whoever_has_executed_something_in_a_batch_does_not_wait_in_it(is_executed: bool) -> None:
    insert = b"insert into t values (1)"
    async with world_of("session") as world:
        on_trial(world)
        world.send(parsed(b"s1", insert) + (executed(b"s1") if is_executed else b""), 0)
        world.send(parsed(b"", SUSPECT), 0)
        assert (world.relay._attaching is None) is is_executed
        assert (b"VFATAL" in world.sink.written) is is_executed


async def test_what_waits_behind_a_statement_is_not_cancelled_in_its_place() -> None:
    async with world_of("session") as world:
        on_trial(world)
        world.send(m.query("insert into t values (1)"), 0)
        world.send(ASKED, 0)
        server = world.relay.current
        assert server is not None
        assert world.relay.cancel() is server
        world.heard()
        world.answer(100)
        assert world.relay.cancel() is None
        assert b"C57014" in world.sink.written
        assert world.relay.current is server


async def test_a_prepared_commit_is_not_cancelled() -> None:
    async with world_of("session") as world:
        for data in (parsed(b"end", b"commit") + m.SYNC_MESSAGE, m.query("begin")):
            world.send(data, 0)
            world.heard()
            world.answer(100)
        world.send(executed(b"end") + m.SYNC_MESSAGE, 0)
        assert world.relay.cancel() is None


async def test_a_server_that_has_not_taken_everything_is_not_let_go() -> None:
    """Nobody would tell the client, which is held back meanwhile, to go on."""
    async with world_of("session") as world:
        world.full(True)
        world.let_go()
        assert world.relay.current is not None
        world.full(False)
        assert world.sink.told == ["pause", "resume"]
        world.let_go()
        assert world.relay.current is None


@pytest.mark.parametrize("fast", [False, True], ids=["full", "fast"])
async def test_portals_are_forgotten_with_their_transaction(fast: bool) -> None:
    world = World("session", fast=fast)
    for number in range(9):
        world.send(parsed(b"", SUSPECT) + executed(b"", b"p%d" % number) + m.SYNC_MESSAGE, 0)
        world.heard()
        world.answer(100)
    assert not world.relay._requests.portals
    world.close()


async def test_whoever_leaves_the_line_of_a_pool_leaves_no_place_behind() -> None:
    async with world_of("transaction") as world:
        pool = world.relay.pool
        assert pool is not None
        world.crowd()
        waiting = [asyncio.create_task(pool.reserve()) for _ in range(5)]
        await a_few_turns()
        assert pool.waiting == 5
        for task in waiting[1:]:
            task.cancel()
        await a_few_turns()
        assert pool.waiting == 1
        waiting[0].cancel()
        world.send(ASKED, 0)
        assert world.relay._waiter is not None
        world.leave()
        await a_few_turns()
        assert pool.waiting == 0


async def test_a_pool_that_has_one_too_many_gets_over_it() -> None:
    """A session waited for leave to go on with its connection, and lost that: the one made in its place is a guest."""
    async with world_of("transaction") as world:
        pool = world.relay.pool
        assert pool is not None
        world.crowd()
        server = world._new_server().connection
        pool.made(server, in_place_of_another=True)
        assert pool.open == pool.limits.size + 1
        pool.give(server)
        assert not pool.idle
        server.connection_lost(None)
        assert pool.open == pool.limits.size


async def test_what_was_sent_together_with_a_refused_statement_still_runs() -> None:
    """As if it had come a moment earlier; its answer is not waited for."""
    async with world_of("session") as world:
        world.suspect(SUSPECT, Standing.REFUSED)
        insert = m.query("insert into t values (1)")
        world.send(insert + ASKED, 0)
        assert told(world, insert) == 1
        assert bytes(world.backends[0].sink.written).endswith(insert + m.TERMINATE_MESSAGE)
        assert b"C53400" in world.sink.written
