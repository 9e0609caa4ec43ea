"""The contracts of a standby whose replay is paused, or behind what it has received."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.register import Quorum
from holdfast.model.server import ServerStatus
from tests.postgres.commits import acknowledged
from tests.postgres.places import Place

Hold = Callable[[str], Coroutine[Any, Any, None]]


async def a_walreceiver_outlives_a_reload_while_replay_is_paused(place: Place) -> None:
    await _outlives_a_reload(place, place.pause_replay, resumes=True)


async def a_walreceiver_outlives_a_reload_while_replay_is_behind(place: Place) -> None:
    await _outlives_a_reload(place, place.slow_replay, resumes=False)


async def _outlives_a_reload(place: Place, hold_up: Hold, *, resumes: bool) -> None:
    leader, first, _ = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    await hold_up(first)
    await acknowledged(place, leader)
    await place.reload_without_upstream(first)
    view = await place.until(first, lambda v: v.upstream_host is None)  # each session hears of a reload by itself
    assert view.walreceiver, view
    number = await acknowledged(place, leader)
    behind = await place.faces[first].view()
    assert behind.position is not None
    assert behind.replay_lsn is not None
    assert behind.replay_lsn < behind.position.lsn
    assert number not in await place.rows(first), "it is not replayed"
    position = await place.faces[first].detach()
    assert position.lsn >= await place.faces[leader].flushed_lsn(), "what is not replayed counts"
    if not resumes:
        assert number not in await place.rows(first)
        await place.hurry_replay(first)
    await place.until(first, lambda v: v.replay_lsn is not None and v.replay_lsn >= position.lsn)
    assert number in await place.rows(first), "a detach resumes what is paused"
    await place.follow(first)


async def a_lost_connection_stays_lost_while_replay_is_paused(place: Place) -> None:
    await _stays_lost(place, place.pause_replay, place.resume_replay)


async def a_lost_connection_stays_lost_while_replay_is_behind(place: Place) -> None:
    await _stays_lost(place, place.slow_replay, place.hurry_replay)


async def _stays_lost(place: Place, hold_up: Hold, let_go: Hold) -> None:
    leader, first, second = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    await hold_up(first)
    await acknowledged(place, leader)
    await place.faces[leader].kill()
    await place.faces[leader].start(standby=False)
    await place.until(leader, lambda v: v.status is ServerStatus.PRIMARY)
    await place.until(first, lambda v: not v.walreceiver)
    await place.caught_up(second)
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[second]}), 1))
    number = await acknowledged(place, leader)
    view = await place.faces[first].view()
    assert (view.walreceiver, view.streaming) == (False, False)
    await let_go(first)
    await place.caught_up(first)
    assert number in await place.rows(first)


async def a_standby_that_replays_its_own_log_is_starting(place: Place) -> None:
    """Only then it knows where its log ends, and asks for more."""
    leader, first, _ = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    await place.slow_replay(first)
    number = await acknowledged(place, leader)
    await place.faces[first].kill()
    end = await place.faces[first].end_of_log()
    await place.faces[first].start(standby=True)
    view = await place.until(first, lambda v: v.replay_lsn is not None)
    assert (view.status, view.position, view.walreceiver) == (ServerStatus.STARTING, None, False)
    with pytest.raises(PostgresError):
        await place.faces[first].detach()
    await place.hurry_replay(first)
    again = await place.until(first, lambda v: v.status is ServerStatus.STANDBY)
    assert again.position == end
    assert number in await place.rows(first)
    await place.follow(first)
