"""Reads on standbys in bad moments: one session between sinks, so that every moment can be had."""

from __future__ import annotations

from holdfast.model.policy import Route
from holdfast.wire import messages as m
from tests.proxy.reading import RoutedWorld, world

__all__ = ["world"]

READ = m.query("select 1")


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
