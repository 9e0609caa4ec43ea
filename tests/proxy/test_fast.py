"""The fast way of a session does what the full way does: the same events, with and without it, byte for byte."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.model.suspect import Standing
from holdfast.wire import messages as m
from tests.proxy.sinks import HOLE, World

TEXTS = (
    b"select 1",
    b"select 3",
    b"SELECT 2000",
    b"select big",
    b"insert into t values (1)",
    b"insert hole",
    b"select 1/0",
    b"select late 1/0",
    b"begin",
    b"commit",
    b"rollback",
    b"savepoint a",
    b"rollback to a",
    b"set x = 1",
    b"set local x = 1",
    b"reset application_name",
    b"select set_config('a', 'b', false)",
    b"select pg_advisory_lock(1)",
    b"select pg_advisory_unlock_all()",
    b"create temp table t ()",
    b"create table t ()",
    b"listen a",
    b"unlisten *",
    b"deallocate s1",
    b"deallocate all",
    b"discard all",
    b"prepare s2 as select 1",
    b"notice",
    b"copy t from stdin",
    b"dump",
    b"die",
    b"",
    b"select 1; select 2",
    b"begin; insert into t values (1); commit",
    b"select 1; set y = 2",
    b"insert into t values (2); select 1/0",
)
COMMON = (*TEXTS[:5], b"begin", b"commit")
NAMES = (b"", b"", b"s1", b"s2")
PORTALS = (b"", b"", b"p")

texts = st.one_of(st.sampled_from(COMMON), st.sampled_from(TEXTS))
names = st.sampled_from(NAMES)
portals = st.sampled_from(PORTALS)
rows = st.sampled_from((bytes(4), bytes(4), b"\0\0\0\1"))

parse = st.builds(lambda name, sql: m.message(m.PARSE, name + b"\0" + sql + b"\0\0\0"), names, texts)
bind = st.builds(lambda portal, name: m.message(m.BIND, portal + b"\0" + name + b"\0" + bytes(6)), portals, names)
describe = st.builds(
    lambda kind, name: m.message(m.DESCRIBE, kind + name + b"\0"), st.sampled_from((b"P", b"P", b"S")), names
)
execute = st.builds(lambda portal, most: m.message(m.EXECUTE, portal + b"\0" + most), portals, rows)
close = st.builds(lambda kind, name: m.message(m.CLOSE, kind + name + b"\0"), st.sampled_from((b"P", b"S")), names)
odd = st.sampled_from(
    (
        m.message(m.FLUSH),
        m.message(m.COPY_DATA, b"x"),
        m.message(m.COPY_DONE),
        m.message(m.COPY_FAIL, b"no\0"),
        m.message(m.FUNCTION_CALL, bytes(10)),
        m.message(m.TERMINATE),
        m.message(ord("?")),
        m.message(m.PARSE, b"no end"),
        b"Q\0\0\0\1",
    )
)

syncs = st.just(m.SYNC_MESSAGE)


def _prepared(name: bytes, portal: bytes, most: bytes) -> bytes:
    bound = m.message(m.BIND, portal + b"\0" + name + b"\0" + bytes(6))
    shown = m.message(m.DESCRIBE, b"P" + portal + b"\0")
    return bound + shown + m.message(m.EXECUTE, portal + b"\0" + most) + m.SYNC_MESSAGE


def _whole(name: bytes, sql: bytes, portal: bytes, most: bytes) -> bytes:
    return m.message(m.PARSE, name + b"\0" + sql + b"\0\0\0") + _prepared(name, portal, most)


common = st.one_of(
    st.builds(m.query, st.sampled_from(COMMON)),
    st.builds(_whole, names, st.sampled_from(COMMON), portals, rows),
    st.builds(_prepared, names, portals, rows),
)
batches = st.one_of(
    common,
    common,
    st.builds(m.query, texts),
    st.builds(_whole, names, texts, portals, rows),
    st.lists(st.one_of(parse, bind, describe, execute, close, execute), max_size=6).map(
        lambda parts: b"".join([*parts, m.SYNC_MESSAGE])
    ),
    st.lists(
        st.one_of(parse, bind, describe, execute, close, odd, st.just(m.SYNC_MESSAGE)), min_size=1, max_size=5
    ).map(b"".join),
)

Event = tuple[str, tuple[Any, ...]]


def _round(data: bytes) -> list[Event]:
    """Asked and answered."""
    return [("send", (data, 0)), ("answer", (100,))]


some_time = st.sampled_from(
    (m.parameter_status("x", "z"), HOLE, m.fatal("57P01", "bye").encode(), m.ready_for_query(m.IDLE))
)
disturbance = st.one_of(
    st.sampled_from(
        [
            *[("lose", ()), ("attach", ()), ("cancel", ()), ("cancelled", ()), ("let_go", ()), ("look", ())],
            *[("doubt", (False,)), ("doubt", (True,)), ("busy", (True,)), ("busy", (False,))],
            *[("full", (True,)), ("full", (False,)), ("leave", ()), ("crowd", ()), ("give_up", ())],
        ]
    ),
    st.tuples(st.just("say"), st.tuples(some_time)),
    st.tuples(st.just("suspect"), st.tuples(st.sampled_from(COMMON), st.sampled_from(list(Standing)))),
)
waiting: st.SearchStrategy[list[Event]] = st.one_of(
    disturbance.map(lambda event: [event]), st.just([]), common.map(lambda data: [("send", (data, 0))])
)
steps = st.one_of(
    st.builds(
        lambda data, meanwhile: [("crowd", ()), ("send", (data, 0)), *meanwhile, ("attach", ()), ("answer", (100,))],
        st.one_of(common, common, batches),
        waiting,
    ),
    common.map(_round),
    common.map(_round),
    batches.map(_round),
    st.builds(lambda data, kept: [("send", (data, kept))], batches, st.sampled_from((0, 0, 0, 1, 4, 7, 12))),
    st.builds(lambda percent: [("answer", (percent,))], st.sampled_from((1, 10, 50, 90, 99, 100, 100))),
    disturbance.map(lambda event: [event]),
    st.builds(
        lambda data, percent, event: [("send", (data, 0)), ("answer", (percent,)), event, ("answer", (100,))],
        st.one_of(common, batches),
        st.integers(0, 100),
        disturbance,
    ),
)
sessions = st.lists(steps, min_size=1, max_size=12).map(lambda parts: [event for part in parts for event in part])


def _play(
    pooling: str, events: list[Event], *, fast: bool, guard: bool = False
) -> tuple[list[object], dict[str, object], Counter[str]]:
    world = World(pooling, fast=fast, guard=guard)
    try:
        heard: list[object] = []
        for name, arguments in events:
            getattr(world, name)(*arguments)
            heard.append(world.heard())
        return heard, world.known(), Counter(flights=world.flights, landings=world.landings, waits=world.waits)
    finally:
        world.close()


async def _compare(pooling: str, events: list[Event], *, guard: bool = False) -> Counter[str]:
    expected, known, none = _play(pooling, events, fast=False, guard=guard)
    heard, also_known, seen = _play(pooling, events, fast=True, guard=guard)
    for number, (event, one, other) in enumerate(zip(events, expected, heard, strict=True)):
        assert other == one, f"event {number}: {event}"
    assert also_known == known
    assert not none["flights"]
    await asyncio.sleep(0)  # what was cancelled ends
    return seen


@pytest.mark.parametrize("guard", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("pooling", ["session", "transaction"])
def test_the_fast_way_does_what_the_full_way_does(pooling: str, guard: bool) -> None:
    seen: Counter[str] = Counter()

    # One in some thirty sessions waits in line: enough of them for that to be seen each time.
    @settings(
        deadline=None, max_examples=600 if pooling == "session" else 2000, suppress_health_check=list(HealthCheck)
    )
    @given(sessions)
    @example(_round(m.query("select 1")) + _round(_whole(b"", b"select 1", b"", bytes(4))))
    @example(
        [
            *_round(_whole(b"s1", b"select 1", b"", bytes(4))),
            *_round(_prepared(b"s1", b"", bytes(4))),
            *_round(m.query("begin")),
            *_round(_prepared(b"s1", b"p", b"\0\0\0\1")),
            *_round(m.query("commit")),
            ("send", (_prepared(b"s1", b"", bytes(4)), 0)),
            ("answer", (50,)),
            ("lose", ()),
            ("attach", ()),
            *_round(m.query("select 1")),
        ]
    )
    @example(
        [
            *_round(m.query("begin")),
            *_round(m.query("set x = 1")),
            *_round(m.query("rollback")),
            *_round(m.query("select 1")),
        ]
    )
    @example([("send", (_whole(b"s1", b"select 1", b"", bytes(4)), 0)), ("answer", (30,)), ("look", ())])
    @example(
        [
            *_round(_whole(b"s1", b"select 3", b"", bytes(4))),
            ("suspect", (b"select 1", Standing.REFUSED)),
            *_round(_prepared(b"s1", b"", bytes(4))),
            *_round(m.query("select 4")),
            ("suspect", (b"select 1", Standing.ALONE)),
            ("send", (_prepared(b"s1", b"", bytes(4)), 0)),
            ("answer", (50,)),
            ("lose", ()),
        ]
    )
    @example([("send", (m.query("select 1; set y = 2"), 0)), ("answer", (50,)), ("answer", (100,))])
    @example(
        [
            *_round(_whole(b"s2", b"select 3", b"p", bytes(4))),
            ("send", (m.message(m.PARSE, b"s1\0select 1\0\0\0") + _prepared(b"s2", b"p", bytes(4)), 0)),
            ("answer", (100,)),
        ]
    )
    def play(events: list[Event]) -> None:
        seen.update(asyncio.run(_compare(pooling, events, guard=guard)))

    play()
    assert seen["flights"] > 100
    assert seen["landings"] > 20
    assert seen["waits"] > 20 or pooling == "session"
