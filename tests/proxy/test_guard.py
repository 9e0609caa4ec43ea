"""Guarded commits: clients hear the same as without the guard, and a lost answer can be found in the log."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from holdfast.model.outcome import Outcome
from holdfast.proxy.guard import CommitGuard
from holdfast.proxy.routing import Routing
from holdfast.wire import messages as m
from holdfast.wire.guard import Token
from tests.proxy.sinks import World

TEXTS = (
    b"select 1",
    b"select 3",
    b"insert into t values (1)",
    b"  insert into t values (2);",
    b"/* hint */ insert into t values (3)",
    b"insert into t values (1/0)",
    b"insert into t values (1); insert into t values (2)",
    b"begin; insert into t values (1); commit",
    b"begin",
    b"commit",
    b"end",
    b"commit; begin",
    b"commit work",
    b"rollback",
    b"savepoint a",
    b"rollback to a",
    b"set x = 1",
    b"deallocate all",
    b"discard all",
    b"select 1/0",
    b"notice",
    b"",
)
NAMES = (b"", b"s1")
FREE = bytes(4)
Sent = tuple[bytes, int]
SESSIONS = 300


def parsed(name: bytes, sql: bytes) -> bytes:
    return m.message(m.PARSE, name + b"\0" + sql + b"\0\0\0")


def executed(name: bytes, portal: bytes = b"", most: bytes = FREE) -> bytes:
    bound = m.message(m.BIND, portal + b"\0" + name + b"\0" + bytes(6))
    return bound + m.message(m.DESCRIBE, b"P" + portal + b"\0") + m.message(m.EXECUTE, portal + b"\0" + most)


def a_part(rng: random.Random) -> bytes:
    name = rng.choice(NAMES)
    match rng.randrange(8):
        case 0:
            return m.message(m.FLUSH)
        case 1:
            return m.message(m.CLOSE, b"Ss1\0")
        case 2 | 3:
            return executed(name, rng.choice((b"", b"p")), rng.choice((FREE, b"\0\0\0\1")))
        case _:
            return parsed(name, rng.choice(TEXTS)) + executed(name)


def a_batch(rng: random.Random) -> bytes:
    return b"".join(a_part(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))) + m.SYNC_MESSAGE


def a_session(rng: random.Random) -> list[Sent]:
    """What is sent, and how much of the answers comes before more is sent."""
    found = []
    for _ in range(rng.randrange(1, 12)):
        data = m.query(rng.choice(TEXTS)) if rng.random() < 0.6 else a_batch(rng)
        if rng.random() < 0.1:
            data += a_batch(rng)
        found.append((data, rng.choice((100, 100, 100, 40, 0))))
    return found


EXTENDED_INSERT = parsed(b"", b"insert into t values (1)") + executed(b"") + m.SYNC_MESSAGE


def heard(pooling: str, events: list[Sent], *, guard: bool, fast: bool) -> tuple[bytes, dict[str, Any], int]:
    """All that a client hears, what its session knows at the end, and how often the server was given a token."""
    world = World(pooling, fast=fast, guard=guard)
    try:
        for data, percent in events:
            world.send(data, 0)
            world.heard()
            world.answer(percent)
        for _ in range(3):
            world.heard()
            world.answer(100)
        written = b"".join(bytes(backend.sink.written) for backend in world.backends)
        return bytes(world.sink.written), world.known(), written.count(b'["token-')
    finally:
        world.close()


def compare(pooling: str, events: list[Sent], *, fast: bool) -> int:
    plain, knows, none = heard(pooling, events, guard=False, fast=fast)
    guarded, also_knows, tokens = heard(pooling, events, guard=True, fast=fast)
    assert guarded == plain
    for name in ("ledger", "copying", "owed", "settings", "prepared", "pins", "uncommitted", "gate", "flags", "waits"):
        assert also_knows[name] == knows[name], name
    assert not none
    return tokens


AT_LEAST: list[list[Sent]] = [
    [(m.query("insert into t values (1)"), 100)],
    [(EXTENDED_INSERT, 100), (EXTENDED_INSERT, 100)],
    [(m.query("begin"), 100), (m.query("insert into t values (1)"), 100), (m.query("commit"), 100)],
    [(m.query("begin"), 100), (m.query("select 1/0"), 100), (m.query("commit"), 100)],
]


@pytest.mark.parametrize("fast", [False, True], ids=["full", "fast"])
@pytest.mark.parametrize("pooling", ["session", "transaction"])
async def test_clients_hear_the_same_with_the_guard_as_without(pooling: str, fast: bool) -> None:
    tokens = 0
    for seed in range(SESSIONS):
        session = AT_LEAST[seed] if seed < len(AT_LEAST) else a_session(random.Random(seed))
        try:
            tokens += compare(pooling, session, fast=fast)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {session}") from error
    assert tokens > SESSIONS // 3


async def test_a_statement_can_be_cancelled_and_a_guarded_commit_cannot() -> None:
    world = World("session", fast=True, guard=True)
    try:
        for statement in (m.query("insert into t values (1)"), EXTENDED_INSERT):
            world.send(statement, 0)
            assert world.relay.cancel() is world.relay.current
            world.cancelled()
            world.heard()
            world.answer(100)
        world.send(m.query("begin"), 0)
        world.heard()
        world.answer(100)
        for commit in (m.query("commit"), parsed(b"", b"commit") + executed(b"") + m.SYNC_MESSAGE):
            world.send(commit, 0)
            assert world.relay.cancel() is None
            world.heard()
            world.answer(100)
            world.send(m.query("begin"), 0)
            world.heard()
            world.answer(100)
    finally:
        world.close()
        await asyncio.sleep(0)


class Told(CommitGuard):
    """Has been told of every transaction."""

    def __init__(self, routing: Routing, outcome: Outcome) -> None:
        super().__init__(routing)
        self.is_on, self.outcome = True, outcome

    async def find_out(self, token: Token, limit_ms: int) -> Outcome:
        return self.outcome


async def lose(events: list[bytes], percent: int, outcome: Outcome) -> tuple[bytes, World]:
    """What the client hears from when the server is lost in the middle of the answer to the last of ``events``."""
    world = World("session", fast=True, guard=True)

    world.lane.guard = Told(world.lane.routing, outcome)
    for data in events[:-1]:
        world.send(data, 0)
        world.heard()
        world.answer(100)
    world.send(events[-1], 0)
    world.heard()
    world.answer(percent)
    told = len(world.sink.written)
    world.lose()
    waiting = world.relay._attaching
    if waiting is not None:
        await waiting
    heard = bytes(world.sink.written[told:])
    world.close()
    await asyncio.sleep(0)
    return heard, world


COMMITTED = m.message(m.COMMAND_COMPLETE, b"COMMIT\0")
READY = m.ready_for_query(m.IDLE)
BLOCK = [m.query("begin"), m.query("insert into t values (1)"), m.query("commit")]
INSERTED = m.message(m.COMMAND_COMPLETE, b"INSERT 0 1\0")


async def test_a_lost_commit_is_answered_with_the_truth() -> None:
    assert (await lose(BLOCK, 0, Outcome.COMMITTED))[0] == COMMITTED + READY
    undone, world = await lose(BLOCK, 0, Outcome.ABORTED)
    assert b"C40001\0" in undone
    assert undone.endswith(READY)
    assert (world.lane.counters.transactions_lost, world.lane.counters.outcomes_unknown) == (1, 0)
    unknown, world = await lose(BLOCK, 0, Outcome.UNKNOWN)
    assert b"C08007\0" in unknown
    assert world.lane.counters.outcomes_unknown == 1


@pytest.mark.parametrize("statement", [m.query("insert into t values (1)"), EXTENDED_INSERT], ids=["Query", "Execute"])
async def test_a_statement_by_itself_has_its_tag_if_the_server_said_it(statement: bytes) -> None:
    heard, _ = await lose([statement], 90, Outcome.COMMITTED)
    assert heard == INSERTED + READY
    heard, _ = await lose([statement], 0, Outcome.COMMITTED)
    assert b"CVC001\0" in heard
    assert heard.endswith(READY)
    heard, _ = await lose([statement], 90, Outcome.ABORTED)
    assert b"C40001\0" in heard
    assert INSERTED not in heard


async def test_what_a_committed_transaction_set_is_kept() -> None:
    session = [m.query("begin"), m.query("set x = 1"), m.query("commit")]
    _, world = await lose(session, 0, Outcome.COMMITTED)
    assert list(world.relay._state.settings) == ["x"]
    _, world = await lose(session, 0, Outcome.ABORTED)
    assert not world.relay._state.settings
