"""Reads on standbys in bad moments: one session between sinks, so that every moment can be had."""

from __future__ import annotations

from holdfast.model.policy import Route
from holdfast.wire import messages as m
from holdfast.wire.sharing import PREPARED_MAX
from tests.proxy.reading import RoutedWorld, world

__all__ = ["world"]

READ = m.query("select 1")
RUN = m.message(m.BIND, b"\0s1\0" + bytes(6)) + m.message(m.EXECUTE, bytes(5)) + m.SYNC_MESSAGE
RUN_UNNAMED = m.message(m.BIND, bytes(8)) + m.message(m.EXECUTE, bytes(5)) + m.SYNC_MESSAGE
PARSE_UNNAMED = m.message(m.PARSE, b"\0select 1\0\0\0")


def parse(sql: bytes) -> bytes:
    return m.message(m.PARSE, b"s1\0" + sql + b"\0\0\0") + m.SYNC_MESSAGE


async def test_a_connection_that_was_paused_for_a_slow_client_is_read_again(world: RoutedWorld) -> None:
    world.client.data_received(READ)
    world.standby.listen()
    world.busy(True)
    world.answer(100)
    assert world.standby.sink.told[-1] == "resume"
    world.new_reader()
    world.client.data_received(READ)
    assert world.backends[-1].sink.told == ["pause"]  # the next answer waits for the client, too


async def test_a_connection_is_read_if_the_client_has_caught_up(world: RoutedWorld) -> None:
    assert world.ask(READ) is world.standby
    world.standby.sink.pause_reading()
    world.client.data_received(READ)
    assert world.standby.sink.told[-1] == "resume"


async def test_what_only_seems_to_read_counts_as_written_if_the_primary_answers_it(world: RoutedWorld) -> None:
    """Unless a standby has answered its like: it can have written nothing there."""
    assert world.ask(READ) is world.standby
    world.reads._route = Route.PRIMARY
    for sql, writes in (("select 2", False), ("select 1 from hidden", True), ("select 1 from t2", True)):
        assert world.ask(m.query(sql)) is world.primary
        world.reads._route = Route.AUTO
        assert world.ask(READ) is (world.primary if writes else world.standby)
        world.sampled()
        assert world.ask(READ) is world.standby
        world.reads._route = Route.PRIMARY


async def test_what_a_standby_could_not_answer_counts_as_written(world: RoutedWorld) -> None:
    assert world.ask(m.query("select 1/0 from hidden")) is world.primary
    assert world.replica.served == 0
    assert world.ask(READ) is world.primary
    world.sampled()
    assert world.ask(READ) is world.standby


async def test_what_waited_for_a_token_in_vain_counts_as_written(world: RoutedWorld) -> None:
    world.relay._state.own["holdfast.wait_for"] = "set holdfast.wait_for = '1:F/0'"
    assert world.ask(m.query("select 1 from hidden")) is None
    world.sampled()
    del world.relay._state.own["holdfast.wait_for"]
    (waiting,) = [task for task in [world.reads._waiting] if task is not None]
    world.standby.connection.abort("gone")
    world.sampled()
    world.lane.replicas._wake()
    await waiting
    assert world.reads._may_write


async def test_what_a_standby_has_not_answered_when_it_leaves_is_asked_of_the_primary(world: RoutedWorld) -> None:
    world.client.data_received(READ)
    replicas = world.lane.replicas
    replicas._judge(world.replica.sampler, 20_000.0)
    assert not world.replica.reading
    assert bytes(world.primary.sink.written) == READ


def give_most(world: RoutedWorld) -> None:
    """A large answer, but for its end."""
    world.client.data_received(m.query("select big"))
    world.standby.listen()
    end = world.standby.pending[-6:]
    del world.standby.pending[-6:]
    world.answer(100)
    world.standby.pending += end


async def test_what_is_passed_on_when_a_standby_leaves_is_finished(world: RoutedWorld) -> None:
    give_most(world)
    world.lane.replicas._judge(world.replica.sampler, 20_000.0)
    assert world.replica.reading
    world.answer(100)
    assert not world.replica.reading
    assert world.sink.written.endswith(m.ready_for_query(m.IDLE))
    assert not world.primary.sink.written


async def test_what_is_passed_on_is_finished_if_the_standbys_record_changes(world: RoutedWorld) -> None:
    """Nobody else reads on that connection afterwards. What was not passed on is asked of the primary."""
    replicas = world.lane.replicas
    replicas._has_login.set()
    replicas.routing.primary = lambda: None  # type: ignore[method-assign]
    give_most(world)
    replicas.reroute()
    assert world.standby.connection.is_open
    world.answer(100)
    assert world.sink.written.endswith(m.ready_for_query(m.IDLE))
    assert b"standby was lost" not in world.sink.written
    assert not world.standby.connection.is_open


async def test_what_is_not_passed_on_is_asked_elsewhere_if_the_standbys_record_changes(world: RoutedWorld) -> None:
    replicas = world.lane.replicas
    replicas._has_login.set()
    world.client.data_received(READ)
    replicas.routing.primary = lambda: None  # type: ignore[method-assign]
    replicas.reroute()
    assert not world.standby.connection.is_open
    assert bytes(world.primary.sink.written) == READ


async def test_nothing_is_finished_when_the_proxy_stops(world: RoutedWorld) -> None:
    give_most(world)
    world.lane.replicas.close()
    assert not world.standby.connection.is_open


async def test_a_statement_is_judged_by_the_text_that_it_was_made_of(world: RoutedWorld) -> None:
    """Not by that of another one of the same name, which the server has refused."""
    assert world.ask(parse(b"insert into t")) is world.primary
    world.client.data_received(parse(b"select 1"))
    world.primary._heard = len(world.primary.sink.written)
    world.primary.pending += m.error("42P05", "already exists").encode() + m.ready_for_query(m.IDLE)
    world.answer(100)
    world.sampled()
    assert world.ask(READ) is world.standby
    assert world.ask(RUN) is world.primary
    assert world.ask(READ) is world.primary


async def test_a_statement_that_prepare_made_is_judged_by_no_text_of_the_protocol(world: RoutedWorld) -> None:
    assert world.ask(m.query("select 7")) is world.standby
    for data in (parse(b"select 7"), m.query("deallocate s1"), m.query("prepare s1 as insert into t")):
        assert world.ask(data) is world.primary
    world.sampled()
    world.ask(RUN)
    assert world.ask(READ) is world.primary


async def test_a_statement_that_only_reads_is_read_by_its_name(world: RoutedWorld) -> None:
    assert world.ask(parse(b"select 7")) is world.primary
    world.sampled()
    assert world.ask(RUN) is world.standby
    world.reads._route = Route.PRIMARY
    assert world.ask(RUN) is world.primary
    world.reads._route = Route.AUTO
    assert world.ask(READ) is world.standby


async def test_settings_that_a_standby_refuses_are_not_told_to_it_again_at_once(world: RoutedWorld) -> None:
    world.relay._state.settings["transaction_isolation"] = "set transaction_isolation = 1/0"
    assert world.ask(READ) is world.primary
    assert world.standby.sink.written
    assert not world.standby.connection.is_open  # nobody knows what is on it
    world.sampled()
    reader = world.new_reader()
    assert world.ask(m.query("select 2")) is world.primary
    assert not reader.sink.written
    world.relay._state.settings.clear()
    world.relay._state._settings_mark = None
    world.sampled()
    assert world.ask(READ) is reader


async def test_nobody_waits_whose_token_is_shown(world: RoutedWorld) -> None:
    """What the session itself has written is not known to be there yet: that is not waited for."""
    world.relay._state.own["holdfast.wait_for"] = "set holdfast.wait_for = '1:0/32'"
    assert world.ask(READ) is world.standby
    assert world.ask(m.query("insert into t")) is world.primary
    assert world.ask(READ) is world.primary
    assert world.lane.replicas.counters.waited == 0


async def test_a_cancelled_read_is_not_asked_again_when_its_standby_is_lost(world: RoutedWorld) -> None:
    world.client.data_received(PARSE_UNNAMED + RUN_UNNAMED)
    assert world.relay.cancel() is world.standby.connection
    world.standby.connection.abort("gone")
    assert m.error("57014", "canceling statement due to user request").encode() in world.sink.written
    assert world.sink.written.endswith(m.ready_for_query(m.IDLE))
    assert not world.primary.sink.written
    assert world.ask(RUN_UNNAMED) is world.primary
    assert world.primary.sink.written.startswith(PARSE_UNNAMED)


async def test_a_connection_that_may_meet_a_late_cancel_is_used_by_nobody_else(world: RoutedWorld) -> None:
    world.client.data_received(m.query("select 1/0"))
    world.standby.connection.is_doubtful = True
    world.standby.listen()
    world.answer(100)
    assert not world.standby.connection.is_open


async def test_a_statement_that_was_closed_in_front_of_a_failed_read_is_not_taken_for_there(world: RoutedWorld) -> None:
    held = world.standby.connection.held
    held.prepared.update((b"holdfast_%d" % n, None) for n in range(PREPARED_MAX))
    assert world.ask(parse(b"select 1/0")) is world.primary
    world.sampled()
    assert world.ask(RUN) is world.primary
    assert b"holdfast_0" in world.standby.sink.written
    assert world.standby.connection.is_open
    assert list(held.prepared) == [b"holdfast_%d" % n for n in range(1, PREPARED_MAX)]


async def test_an_unnamed_statement_is_told_to_the_primary_when_that_may_begin_again(world: RoutedWorld) -> None:
    """Not while a switchover holds what begins: the statement behind it would go through."""
    assert world.ask(PARSE_UNNAMED + RUN_UNNAMED) is world.standby
    world.reads._route = Route.PRIMARY
    world.primary.connection.on_hold = True
    assert world.ask(RUN_UNNAMED) is None
    world.client.data_received(READ)  # and it is not forgotten for what comes behind
    assert not world.primary.sink.written
    assert world.relay._attaching is not None
    world.relay._attaching.cancel()
    world.primary.connection.on_hold = False
    world.relay._go_on(world.primary.connection)
    assert bytes(world.primary.sink.written) == PARSE_UNNAMED + RUN_UNNAMED + READ
    before = len(world.sink.written)
    world.primary.listen()
    world.answer(100)
    assert world.sink.written[before:].startswith(m.message(m.BIND_COMPLETE))


async def test_an_unnamed_statement_is_told_once_to_a_new_primary(world: RoutedWorld) -> None:
    assert world.ask(PARSE_UNNAMED + RUN_UNNAMED) is world.standby
    world.reads._route = Route.PRIMARY
    world.primary.connection.on_hold = True
    assert world.ask(RUN_UNNAMED) is None
    world.attach()
    assert bytes(world.backends[-1].sink.written) == RUN_UNNAMED  # the lane tells it the session's state
