"""Causes come before what they led to, whatever the clocks of the hosts say."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.causality import in_order
from holdfast.model.errors import RegisterError
from holdfast.model.event import Event, Stamp
from holdfast.store.clock import Clock

START_US = 1_795_260_000_000_000
DRIFT_MAX_US = 5_000_000
HOSTS = 4


@dataclass
class Host:
    """A host with a wall clock that is wrong, and what its events are known to have been caused by."""

    offset_us: int
    now_us: list[int]
    clock: Clock = field(init=False)
    known: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.clock = Clock(lambda: max(0, self.now_us[0] + self.offset_us), DRIFT_MAX_US)


Act = tuple[int, int | None, int, int]

steps = st.lists(
    st.tuples(
        st.integers(0, HOSTS - 1),  # who acts
        st.one_of(st.none(), st.integers(0, HOSTS - 1)),  # whom it tells of everything so far, if anybody
        st.integers(0, 3_000),  # and how much later, microseconds
        st.integers(-100, 100),  # by which the actor's wall clock is moved meanwhile: somebody sets it
    ),
    max_size=60,
)


def run(offsets: list[int], acts: list[Act]) -> tuple[list[Event], list[frozenset[int]]]:
    """The events, in the order of true time, and what each was caused by."""
    now_us = [START_US]
    hosts = [Host(offset, now_us) for offset in offsets]
    events: list[Event] = []
    causes: list[frozenset[int]] = []
    for who, whom, later_us, moved_us in acts:
        now_us[0] += later_us
        host = hosts[who]
        host.offset_us += moved_us
        stamp = host.clock.stamp()
        events.append(Event(stamp.ms, f"n{who}", "test", 1, detail={"i": len(events)}, stamp=stamp))
        causes.append(host.known)
        host.known |= {len(events) - 1}
        if whom is not None:
            hosts[whom].clock.saw(host.clock.stamp())
            hosts[whom].known |= host.known
    return events, causes


near = st.lists(st.integers(-DRIFT_MAX_US // 4, DRIFT_MAX_US // 4), min_size=HOSTS, max_size=HOSTS)


@settings(deadline=None)
@given(near, steps)
def test_an_event_comes_after_all_that_caused_it(offsets: list[int], acts: list[Act]) -> None:
    events, causes = run(offsets, acts)
    place = {event.detail["i"]: n for n, event in enumerate(in_order(reversed(events)))}
    for i, before in enumerate(causes):
        assert all(place[cause] < place[i] for cause in before)
        assert all(events[cause].order < events[i].order for cause in before)


@settings(deadline=None)
@given(near, steps)
def test_no_stamp_is_ahead_of_every_wall_clock(offsets: list[int], acts: list[Act]) -> None:
    events, _ = run(offsets, acts)
    now_us, highest = START_US, [0] * HOSTS
    moved = list(offsets)
    for event, (who, _, later_us, moved_us) in zip(events, acts, strict=True):
        now_us += later_us
        moved[who] += moved_us
        highest[who] = max(highest[who], moved[who])
        assert event.stamp is not None
        assert event.stamp.us <= now_us + max(*highest, *moved)
        assert event.stamp.us >= now_us + moved[who]


@settings(deadline=None)
@given(st.integers(DRIFT_MAX_US + 10_000, 10**15), steps)
def test_one_clock_that_is_far_ahead_takes_nobody_with_it(ahead_us: int, acts: list[Act]) -> None:
    events, _ = run([ahead_us] + [0] * (HOSTS - 1), acts)
    for event in events:
        assert event.stamp is not None
        assert event.source == "n0" or event.stamp.us < START_US + 60 * 3_100 + 60 * 100


def test_a_clock_that_was_set_back_goes_on_where_it_was() -> None:
    wall = [2_000_000]
    clock = Clock(lambda: wall[0])
    first = clock.stamp()
    wall[0] = 1_000_000
    assert [clock.stamp(), clock.stamp()] == [Stamp(first.us, 1), Stamp(first.us, 2)]
    wall[0] = 3_000_000
    assert clock.stamp() == Stamp(3_000_000)


def test_a_stamp_is_read_as_it_was_written() -> None:
    assert Stamp.parse(str(Stamp(START_US, 7))) == Stamp(START_US, 7)
    for wrong in ("", "1", "+1", "1+", "-1+0", "1+x", "1" * 50 + "+0", "\u0661+0"):
        with pytest.raises(RegisterError, match="hybrid clock"):
            Stamp.parse(wrong)


def test_entries_without_a_stamp_are_ordered_by_the_wall_clock() -> None:
    old = [Event(at, "n1", "test", 1) for at in (3.0, 1.0, 2.0)]
    new = Event(0.0, "n2", "test", 1, stamp=Stamp(2_500))
    assert [e.time_ms for e in in_order([*old, new])] == [1.0, 2.0, 2.5, 3.0]
