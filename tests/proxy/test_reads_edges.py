"""Reads on standbys in bad moments: one session between sinks, so that every moment can be had."""

from __future__ import annotations

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
