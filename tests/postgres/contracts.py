"""What the protocol rests on, of a PostgreSQL: the same for the simulator's model and for the real one.

Each contract finds three servers that are whole, and leaves them so.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Position
from holdfast.model.register import Member, Quorum
from holdfast.model.server import ServerStatus
from holdfast.postgres.config import BARRIER
from tests.postgres import replaying
from tests.postgres.commits import STRANGER, acknowledged, counted, is_released, write_that_waits
from tests.postgres.lab import new_incarnation, nothing
from tests.postgres.places import NODES, Place

Contract = Callable[[Place], Coroutine[Any, Any, None]]

# ---- commits --------------------------------------------------------------------------------------------------


async def commits_wait_for_any_k_of_the_names(place: Place) -> None:
    leader, first, second = await place.trio()
    one, other = place.members[first], place.members[second]
    await place.faces[leader].set_quorum(Quorum(frozenset({one, other}), 2))
    await acknowledged(place, leader)
    await place.faces[second].detach()
    _, commit = await write_that_waits(place, leader)
    await place.caught_up(first)
    assert not commit.is_done(), "one of two is not enough"
    await place.follow(second)
    assert await is_released(place, leader, commit)
    await place.faces[second].detach()
    await place.faces[leader].set_quorum(Quorum(frozenset({one, other}), 1))
    await acknowledged(place, leader)
    await place.follow(second)


async def only_names_that_are_listed_count(place: Place) -> None:
    leader, first, second = await place.trio()
    await place.faces[leader].set_quorum(STRANGER)
    await counted(place, leader)
    number, commit = await write_that_waits(place, leader)
    await place.caught_up(first)
    await place.caught_up(second)
    assert not commit.is_done(), "everybody has it, and nobody counts"
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    assert await is_released(place, leader, commit)
    await counted(place, leader, first)
    assert number in await place.rows(leader)


async def a_cancelled_wait_shows_the_row(place: Place) -> None:
    leader, *_ = await place.trio()
    await place.faces[leader].set_quorum(STRANGER)
    number, commit = await write_that_waits(place, leader)
    assert number not in await place.rows(leader), "it has not ended yet"
    await commit.cancel()
    assert not await commit.acknowledged(), "a success with a warning is none"
    assert number in await place.rows(leader)


async def emptied_names_release_everybody(place: Place) -> None:
    leader, *_ = await place.trio()
    await place.faces[leader].set_quorum(STRANGER)
    _, commit = await write_that_waits(place, leader)
    await place.faces[leader].set_quorum(Quorum(STRANGER.members, 0))
    assert await commit.acknowledged(), "and without a warning"


async def a_restart_shows_what_waited(place: Place) -> None:
    leader, first, second = await place.trio()
    face = place.faces[leader]
    await face.set_quorum(STRANGER)
    number, commit = await write_that_waits(place, leader)
    await face.kill()
    assert not await commit.acknowledged()
    assert (await face.view()).status is ServerStatus.STOPPED
    end = await face.end_of_log()
    await face.start(standby=False)
    view = await place.until(leader, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.synchronous_names == BARRIER, "it starts closed"
    assert view.position is not None
    assert view.position >= end
    assert number in await place.rows(leader), "with the word of no standby"
    _, closed = await write_that_waits(place, leader)
    await place.caught_up(first)
    await place.caught_up(second)
    assert not closed.is_done()
    await face.set_quorum(Quorum(STRANGER.members, 0))
    assert await closed.acknowledged()


async def a_fast_stop_gives_waits_up(place: Place) -> None:
    leader, *_ = await place.trio()
    await place.faces[leader].set_quorum(STRANGER)
    number, commit = await write_that_waits(place, leader)
    await place.faces[leader].stop("fast", 10_000)
    assert not await commit.acknowledged()
    await place.faces[leader].start(standby=False)
    await place.until(leader, lambda v: v.status is ServerStatus.PRIMARY)
    assert number in await place.rows(leader)


async def a_report_in_flight_counts_when_it_arrives(place: Place) -> None:
    """Also when its sender follows nobody any more: whoever detaches a standby has not taken back what it has said."""
    leader, first, _ = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    await place.faces[first].detach()
    line = await place.follow_by_line(first)
    await place.caught_up(first)
    await counted(place, leader, first)
    line.hold()
    _, commit = await write_that_waits(place, leader)
    end = await place.faces[leader].flushed_lsn()
    await place.until(first, lambda v: v.position is not None and v.position.lsn >= end)
    await place.faces[first].detach()
    assert not commit.is_done()
    line.let_go()
    assert await commit.acknowledged()
    await place.follow(first)


async def a_slot_serves_one_connection(place: Place) -> None:
    """PostgreSQL counts connections and not names: a standby connects again only when its former end was noticed."""
    leader, first, second = await place.trio()
    await place.faces[second].detach()
    both = frozenset({place.members[first], place.members[second]})
    await place.faces[leader].set_quorum(Quorum(both, 2))
    await place.faces[first].detach()
    line = await place.follow_by_line(first)
    _, commit = await write_that_waits(place, leader)
    await place.caught_up(first)
    line.hold()
    await place.faces[first].detach()
    refusals = place.refusals(first)
    await place.faces[first].follow(place.upstream(leader), place.members[first])
    await place.was_refused(first, refusals + 1)
    assert not (await place.faces[first].view()).streaming
    assert not commit.is_done(), "it is on one standby alone"
    line.let_go()
    await place.until(first, lambda v: v.streaming)
    await place.follow(second)
    assert await is_released(place, leader, commit)


# ---- standbys -------------------------------------------------------------------------------------------------


async def a_detached_standby_confirms_nothing(place: Place) -> None:
    leader, first, _ = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    await acknowledged(place, leader)
    confirmed = await place.faces[leader].view()
    flushed = next(r.flush_lsn for r in confirmed.replicas if r.member == place.members[first])
    position = await place.faces[first].detach()
    assert flushed is not None
    assert position.lsn >= flushed, "what it has confirmed, it has"
    view = await place.faces[first].view()
    assert (view.upstream_host, view.walreceiver, view.streaming) == (None, False, False)
    assert await place.faces[first].detach() == position
    _, commit = await write_that_waits(place, leader)
    assert (await place.faces[first].view()).position == position
    assert not commit.is_done()
    await place.follow(first)
    assert await is_released(place, leader, commit)


async def a_freeze_delays_and_loses_nothing(place: Place) -> None:
    leader, first, _ = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    await acknowledged(place, leader)
    place.freeze(first)
    try:
        _, commit = await write_that_waits(place, leader)
        assert (await place.faces[first].view()).status is ServerStatus.UNRESPONSIVE
        assert not commit.is_done()
    finally:
        place.thaw(first)
    assert await commit.acknowledged()
    assert (await place.faces[first].view()).streaming, "over the same connection"


async def positions_stay_what_they_are_over_a_restart(place: Place) -> None:
    leader, first, second = await place.trio()
    await acknowledged(place, leader)
    await place.caught_up(first)
    before = await place.faces[first].detach()
    await place.faces[first].stop("fast", 10_000)
    assert await place.faces[first].end_of_log() == before
    await place.faces[first].start(standby=True)
    after = await place.until(first, lambda v: v.status is ServerStatus.STANDBY)
    assert (after.position, after.upstream_host, after.streaming) == (before, None, False)
    assert after.synchronous_names == BARRIER
    await place.follow(first)
    await place.caught_up(second)


async def a_kill_keeps_what_was_confirmed(place: Place) -> None:
    leader, first, _ = await place.trio()
    await place.faces[leader].set_quorum(Quorum(frozenset({place.members[first]}), 1))
    number = await acknowledged(place, leader)
    view = await place.faces[leader].view()
    flushed = next(r.flush_lsn for r in view.replicas if r.member == place.members[first])
    await place.faces[first].kill()
    end = await place.faces[first].end_of_log()
    assert flushed is not None
    assert end.lsn >= flushed
    await place.faces[first].start(standby=True)
    again = await place.until(first, lambda v: v.status is ServerStatus.STANDBY)
    assert again.position is not None
    assert again.position >= end
    assert number in await place.rows(first)
    await place.follow(first)


async def a_fast_stop_leaves_the_standbys_with_everything(place: Place) -> None:
    leader, first, second = await place.trio()
    await acknowledged(place, leader)
    await place.faces[leader].stop("fast", 10_000)
    end = await place.faces[leader].end_of_log()
    for node in (first, second):
        view = await place.until(node, lambda v: not v.streaming)
        assert view.position == end
    await place.faces[leader].start(standby=False)
    await place.until(leader, lambda v: v.status is ServerStatus.PRIMARY)


# ---- promotion and what comes of it ---------------------------------------------------------------------------


async def what_must_not_be_is_refused(place: Place) -> None:
    leader, first, _ = await place.trio()
    with pytest.raises(PostgresError):
        await place.faces[leader].promote(place.epoch + 1)
    with pytest.raises(PostgresError):
        await place.faces[leader].detach()
    with pytest.raises(PostgresError):
        await place.faces[leader].follow(place.upstream(first), place.members[leader])
    with pytest.raises(PostgresError):
        await place.faces[first].promote(place.epoch)
    with pytest.raises(PostgresError):
        await place.faces[first].end_of_log()
    with pytest.raises(PostgresError):
        await place.faces[first].start(standby=True)
    await place.faces[first].set_quorum(Quorum(STRANGER.members, 0))
    with pytest.raises(PostgresError):
        await place.faces[first].promote(place.epoch + 1)
    await place.faces[first].set_quorum(None)


async def a_promotion_takes_everybody_along(place: Place) -> None:
    """Sessions become writers behind the barrier, followers cross the switch, and the timeline is the epoch."""
    leader, first, second = await place.trio()
    early = await place.session(first)
    former, epoch = place.epoch, place.epoch + 5
    await place.faces[leader].kill()
    position = await place.faces[first].detach()
    await place.faces[second].detach()
    await place.follow(second, first)
    receiver = await place.receiver(second)
    await place.faces[first].promote(epoch)
    await place.faces[first].promote(epoch)
    view = await place.until(first, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.position is not None
    assert view.position.timeline == epoch
    assert (view.history[-1].timeline, view.history[-1].switch_lsn) == (former, position.lsn)
    assert await place.faces[first].history_of(epoch) == view.history
    assert view.synchronous_names == BARRIER
    commit = early(number := place.next_number())
    assert await place.waits(first, commit)
    place.leader, place.epoch = first, epoch
    await place.caught_up(second)
    assert not commit.is_done(), "no acknowledgement before the configuration"
    await place.faces[first].set_quorum(Quorum(frozenset({place.members[second]}), 1))
    assert await is_released(place, first, commit)
    followed = await place.until(second, lambda v: v.position is not None and v.position.timeline == epoch)
    assert followed.history == view.history
    assert await place.receiver(second) == receiver, "over the same connection"
    assert number in await place.rows(second)
    await place.join(leader)  # its log ends before the fork: it can follow as it is


async def log_beyond_the_fork_must_go(place: Place) -> None:
    """It keeps a standby from streaming; a rewind takes it away, and the row that nobody had.

    Until then the standby must not be counted: streaming begins with a whole segment, so that it is let in for a
    moment, says how far it has replayed its own log, and confirms with that what it does not have.
    """
    leader, first, second = await place.trio()
    await place.faces[
        leader
    ].checkpoint()  # up to PostgreSQL 15 pg_rewind takes the timeline of the last one for its own
    await acknowledged(place, leader)  # the fork is not where a segment begins
    await place.caught_up(first)
    await place.caught_up(second)
    await place.faces[first].detach()
    await place.faces[second].detach()
    session = await place.session(leader)
    lost = [place.next_number() for _ in range(60)]
    for number in lost:
        assert await session(number).acknowledged()
    await place.faces[leader].kill()
    epoch = place.epoch + 1
    await place.faces[first].promote(epoch)
    await place.until(first, lambda v: v.status is ServerStatus.PRIMARY)
    former, place.leader, place.epoch = leader, first, epoch
    await place.faces[first].set_quorum(Quorum(frozenset({place.members[former]}), 1))
    kept, commit = await write_that_waits(place, first)
    stray = place.faces[former]
    await stray.start(standby=True)
    await place.until(former, lambda v: v.status is ServerStatus.STANDBY)
    refusals = place.refusals(former)
    await place.faces[first].ensure_slots(NODES)
    await stray.follow(place.upstream(first), place.members[former])
    assert await commit.acknowledged(), "by a standby that has something else there"
    await place.was_refused(former, refusals + 1)
    rows = await place.rows(former)
    assert kept not in rows
    assert rows.issuperset(lost), "it goes on serving the lost rows"
    await place.faces[first].set_quorum(Quorum(STRANGER.members, 0))
    await place.faces[first].write_epoch_record(epoch)
    await place.follow(second)
    await stray.stop("fast", 10_000)
    end = await stray.end_of_log()
    fork = (await place.faces[first].view()).history[-1].switch_lsn
    assert end.lsn > fork
    await stray.rewind(place.upstream(first), end, nothing)
    assert stray.incarnation() is None, "whoever was counted on is no more"
    place.members[former] = Member(former, new_incarnation())
    await stray.set_incarnation(place.members[former].incarnation)
    await place.join(former)
    await place.caught_up(former)
    rows = await place.rows(former)
    assert kept in rows
    assert rows.isdisjoint(lost)


async def a_log_that_fits_is_not_rewound(place: Place) -> None:
    leader, first, _ = await place.trio()
    await place.faces[first].stop("fast", 10_000)
    end = await place.faces[first].end_of_log()
    assert await place.faces[first].rewind(place.upstream(leader), end, nothing) is None
    assert place.faces[first].incarnation() == place.members[first].incarnation
    beyond = Position(end.timeline, type(end.lsn)(end.lsn + (1 << 30)))
    with pytest.raises(PostgresError, match="clone is needed"):
        await place.faces[first].rewind(place.upstream(leader), beyond, nothing)
    await place.join(first)


async def a_clone_is_another_member(place: Place) -> None:
    leader, first, _ = await place.trio()
    number = await acknowledged(place, leader)
    former = place.members[first]
    with pytest.raises(PostgresError):
        await place.faces[first].clone(place.upstream(leader), former, nothing)
    await place.faces[first].stop("immediate", 5000)
    place.members[first] = renewed = Member(first, new_incarnation())
    await place.faces[first].clone(place.upstream(leader), renewed, nothing)
    assert place.faces[first].incarnation() == renewed.incarnation
    await place.join(first)
    await place.caught_up(first)
    assert number in await place.rows(first)
    named = {r.member for r in (await place.faces[leader].view()).replicas}
    assert renewed in named
    assert former not in named


CONTRACTS: tuple[Contract, ...] = (
    commits_wait_for_any_k_of_the_names,
    only_names_that_are_listed_count,
    a_cancelled_wait_shows_the_row,
    emptied_names_release_everybody,
    a_restart_shows_what_waited,
    a_fast_stop_gives_waits_up,
    a_report_in_flight_counts_when_it_arrives,
    a_slot_serves_one_connection,
    a_detached_standby_confirms_nothing,
    replaying.a_walreceiver_outlives_a_reload_while_replay_is_paused,
    replaying.a_walreceiver_outlives_a_reload_while_replay_is_behind,
    replaying.a_lost_connection_stays_lost_while_replay_is_paused,
    replaying.a_lost_connection_stays_lost_while_replay_is_behind,
    replaying.a_standby_that_replays_its_own_log_is_starting,
    a_freeze_delays_and_loses_nothing,
    positions_stay_what_they_are_over_a_restart,
    a_kill_keeps_what_was_confirmed,
    a_fast_stop_leaves_the_standbys_with_everything,
    what_must_not_be_is_refused,
    a_promotion_takes_everybody_along,
    log_beyond_the_fork_must_go,
    a_log_that_fits_is_not_rewound,
    a_clone_is_another_member,
)
