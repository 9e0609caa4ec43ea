"""Who may answer a read. The properties are played against a log that is written, sampled and replayed at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.freshness import (
    FIRST_MS,
    KEPT_MAX,
    UNFLUSHED_MAX,
    Bounds,
    Choice,
    Mark,
    Pages,
    Primary,
    Reached,
    Standing,
    in_order,
    judge,
)
from holdfast.model.lsn import Lsn

BOUNDS = Bounds(lag_max_ms=1000, back_ms=500)


def test_only_a_sample_that_was_sent_after_the_answer_covers_a_write() -> None:
    primary = Primary()
    under_way = primary.begin()
    written = Mark(1, primary.sent)
    primary.answer(under_way, 0.0, Reached(1, Lsn(100)), 1.0)
    assert primary.covers(written) is None
    primary.answer(primary.begin(), 2.0, Reached(1, Lsn(200)), 3.0)
    primary.answer(primary.begin(), 4.0, Reached(1, Lsn(300)), 5.0)
    assert primary.covers(written) == Reached(1, Lsn(200))


def test_the_answer_of_an_older_primary_covers_nothing_of_a_newer_one() -> None:
    primary = Primary()
    written = Mark(2, primary.sent)
    primary.answer(primary.begin(), 0.0, Reached(1, Lsn(900)), 1.0)
    assert primary.covers(written) is None
    primary.answer(primary.begin(), 2.0, Reached(2, Lsn(500)), 3.0)
    assert primary.covers(written) == Reached(2, Lsn(500))
    primary.answer(primary.begin(), 4.0, Reached(1, Lsn(999)), 5.0)  # it woke up
    assert primary.newest == Reached(2, Lsn(500))


def test_what_is_forgotten_is_covered_by_what_came_later() -> None:
    primary = Primary()
    for n in range(2 * KEPT_MAX):
        primary.answer(primary.begin(), n, Reached(1, Lsn(n)), n)
    assert primary.covers(Mark(1, 3)) == Reached(1, Lsn(KEPT_MAX))


def test_positions_of_an_earlier_epoch_are_there_with_all_that_is_left_of_it() -> None:
    primary = Primary()
    primary.answer(primary.begin(), 0.0, Reached(7, Lsn(1000)), 1.0)
    old = Reached(7, Lsn(1000))
    assert primary.is_seen(old, Reached(7, Lsn(1000)))
    assert not primary.is_seen(old, Reached(8, Lsn(5000)))  # nothing is known of epoch 8
    primary.answer(primary.begin(), 2.0, Reached(8, Lsn(600)), 3.0)
    primary.answer(primary.begin(), 4.0, Reached(8, Lsn(700)), 5.0)
    assert not primary.is_seen(old, Reached(8, Lsn(599)))
    assert primary.is_seen(old, Reached(8, Lsn(600)))  # what was beyond that in epoch 7 is nowhere
    assert not primary.is_seen(Reached(9, Lsn(1)), Reached(8, Lsn(9000)))
    assert not primary.is_seen(Reached(8, Lsn(650)), Reached(7, Lsn(9000)))


def test_lag_is_the_age_of_what_is_surely_there() -> None:
    primary = Primary()
    assert primary.lag_ms(Reached(1, Lsn(5))) is None
    for n in range(10):
        primary.answer(primary.begin(), 1000.0 * n, Reached(1, Lsn(100 + n)), 1000.0 * n + 1)
    assert primary.lag_ms(Reached(1, Lsn(109))) == 0
    assert primary.lag_ms(Reached(1, Lsn(106))) == 3001
    assert primary.lag_ms(Reached(1, Lsn(99))) is None
    assert primary.lag_ms(Reached(2, Lsn(109))) is None


def test_what_is_not_flushed_is_not_missing() -> None:
    """On a quiet cluster with a transaction that goes on: an insert of it, and the page that was flushed meanwhile."""
    primary = Primary()
    for now_ms in range(0, 20_000, 250):
        flushed = 110 if now_ms > 5000 else 100  # 110 is within a record
        written = 130 if now_ms > 4000 else 120 if now_ms > 2000 else 100
        primary.answer(primary.begin(), now_ms, Reached(1, Lsn(written)), now_ms + 1, Lsn(flushed))
        assert primary.lag_ms(Reached(1, Lsn(100))) == 0
    primary.answer(primary.begin(), 20_000, Reached(1, Lsn(130)), 20_001, Lsn(130))
    assert primary.lag_ms(Reached(1, Lsn(100))) == 251
    primary.answer(primary.begin(), 30_000, Reached(1, Lsn(130)), 30_001, Lsn(130))
    assert primary.lag_ms(Reached(1, Lsn(120))) == 10_251
    assert primary.lag_ms(Reached(1, Lsn(130))) == 0


def test_nothing_is_known_of_lag_before_an_end_of_a_record_was_flushed() -> None:
    primary = Primary()
    primary.answer(primary.begin(), 0, Reached(1, Lsn(120)), 1, Lsn(110))
    assert not primary.can_measure(Reached(1, Lsn(100)))
    assert primary.lag_ms(Reached(1, Lsn(110))) == 0
    primary.answer(primary.begin(), 2, Reached(1, Lsn(120)), 3, Lsn(120))
    assert primary.lag_ms(Reached(1, Lsn(120))) == 0
    assert primary.lag_ms(Reached(1, Lsn(100))) is None


def test_a_standby_has_a_moment_for_what_was_there_when_it_was_looked_for_first() -> None:
    """On a busy cluster it has not replayed that yet when a proxy starts, or an epoch begins."""
    primary = Primary()
    for now_ms in range(0, FIRST_MS, 250):
        primary.answer(primary.begin(), now_ms, Reached(1, Lsn(120)), now_ms + 1)
        assert not primary.can_measure(Reached(1, Lsn(119)))
        assert primary.can_measure(Reached(1, Lsn(120)))
    primary.answer(primary.begin(), FIRST_MS, Reached(1, Lsn(120)), FIRST_MS + 1)
    assert primary.can_measure(Reached(1, Lsn(119)))
    assert primary.lag_ms(Reached(1, Lsn(119))) is None


def test_a_disk_that_is_slow_for_long_does_not_hide_who_is_behind() -> None:
    """More positions than are remembered, and a primary that lost what was not flushed."""
    primary = Primary()
    primary.answer(primary.begin(), 0, Reached(1, Lsn(10)), 0, Lsn(10))
    for n in range(2 * UNFLUSHED_MAX):
        primary.answer(primary.begin(), 1000, Reached(1, Lsn(100 + n)), 1000, Lsn(10))
    primary.answer(primary.begin(), 2000, Reached(1, Lsn(9000)), 2000, Lsn(500))
    assert primary.lag_ms(Reached(1, Lsn(499))) == 1000
    assert primary.lag_ms(Reached(1, Lsn(500))) == 0
    primary.answer(primary.begin(), 3000, Reached(1, Lsn(600)), 3000, Lsn(550))
    primary.answer(primary.begin(), 4000, Reached(1, Lsn(700)), 4000, Lsn(650))
    assert primary.lag_ms(Reached(1, Lsn(600))) == 0


@pytest.mark.parametrize(
    ("named", "end"),
    [(0x6000, 0x6000), (0x6018, 0x6000), (0x6028, 0x6028), (0x100028, 0x100000), (0x100018, 0x100018)],
)
def test_the_header_of_a_page_that_is_yet_to_be_written_is_not_waited_for(named: int, end: int) -> None:
    primary = Primary()
    primary.pages = Pages(page=8192, segment=1 << 20)
    before, at_end = Reached(1, Lsn(end - 1)), Reached(1, Lsn(end))
    assert primary.is_seen(Reached(1, Lsn(named)), at_end)
    assert not primary.is_seen(Reached(1, Lsn(named)), before)
    primary.answer(primary.begin(), 0, Reached(1, Lsn(named)), 1, Lsn(end))
    assert primary.lag_ms(at_end) == 0
    assert primary.lag_ms(before) is None


PAGE = 50


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_whoever_replays_what_it_is_sent_is_never_behind_and_whoever_does_not_soon_is(seed: int) -> None:
    """Records are written and flushed, whole or up to a page; samples are answered at once."""
    rng, primary = random.Random(seed), Primary()
    ends, flushed, now_ms, stuck = [1000], 1000, 0.0, 1000
    stuck_since_ms: float | None = None
    primary.answer(primary.begin(), now_ms, Reached(1, Lsn(stuck)), now_ms)
    for _ in range(300):
        now_ms += 250
        if rng.random() < 0.5:
            ends.append(ends[-1] + rng.randrange(1, 3 * PAGE))
        if rng.random() < 0.3:
            flushed = rng.choice((ends[-1], max(flushed, ends[-1] - ends[-1] % PAGE)))
        shown = max((end for end in ends if end <= flushed), default=1000)
        primary.answer(primary.begin(), now_ms, Reached(1, Lsn(ends[-1])), now_ms, Lsn(flushed))
        assert primary.lag_ms(Reached(1, Lsn(shown))) == 0
        if stuck_since_ms is None and flushed == ends[-1] > stuck:
            stuck_since_ms = now_ms
        if stuck_since_ms is not None:
            lag_ms = primary.lag_ms(Reached(1, Lsn(stuck)))
            assert lag_ms is not None
            assert lag_ms >= now_ms - stuck_since_ms


@pytest.mark.parametrize("text", ["", "7", "7:", "x:0/1", "-1:0/1", "7:0/zz", "0/3000148", "7:0/1:0/2"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        Reached.parse(text)


@given(st.integers(0, 2**31), st.integers(0, 2**63))
def test_a_token_is_read_as_it_was_written(epoch: int, lsn: int) -> None:
    assert Reached.parse(str(Reached(epoch, Lsn(lsn)))) == Reached(epoch, Lsn(lsn))


@dataclass
class World:
    """A log of epochs, sessions that write, standbys that replay, and samples that take their time."""

    rng: random.Random
    primary: Primary = field(default_factory=Primary)
    epoch: int = 1
    log: int = 1000
    written: list[tuple[Mark, int, int]] = field(default_factory=list)
    """Mark, epoch and position of each write whose answer has come."""
    replayed: list[tuple[int, int]] = field(default_factory=lambda: [(1, 0), (1, 0)])
    """Of each standby: the epoch that it follows, and how far it is."""
    forks: dict[int, int] = field(default_factory=dict)
    """Where each epoch but the first began."""
    under_way: tuple[int, float, Reached | None] | None = None
    now_ms: float = 0.0

    def step(self) -> None:
        self.now_ms += self.rng.random() * 20
        self.rng.choice((self.write, self.write, self.sample, self.sample, self.replay, self.replay, self.promote))()

    def write(self) -> None:
        self.log += self.rng.randrange(1, 50)
        self.written.append((Mark(self.epoch, self.primary.sent), self.epoch, self.log))

    def sample(self) -> None:
        """Sent, looked at by the server, or answered: in three steps, with anything in between."""
        if self.under_way is None:
            self.under_way = self.primary.begin(), self.now_ms, None
        elif self.under_way[2] is None:
            self.under_way = *self.under_way[:2], Reached(self.epoch, Lsn(self.log))
        else:
            self.primary.answer(*self.under_way[:2], self.under_way[2], self.now_ms)
            self.under_way = None

    def replay(self) -> None:
        index = self.rng.randrange(len(self.replayed))
        epoch, reached = self.replayed[index]
        end = self.forks.get(epoch + 1, self.log) if epoch < self.epoch else self.log
        reached = self.rng.randint(reached, max(reached, end))
        if epoch < self.epoch and reached <= self.forks[epoch + 1] and self.rng.random() < 0.5:
            epoch += 1
        self.replayed[index] = epoch, reached

    def promote(self) -> None:
        """A standby takes over; with the log beyond its own what others had is lost."""
        if self.rng.random() > 0.1:
            return
        self.epoch += 1
        self.log = max(reached for _, reached in self.replayed) + self.rng.randrange(3)
        self.forks[self.epoch] = self.log
        self.log += self.rng.randrange(1, 5)
        self.replayed = [(epoch, min(reached, self.log)) for epoch, reached in self.replayed]

    def is_there(self, epoch: int, position: int, index: int) -> bool:
        """Whether a standby shows a write, or the write was lost with a primary."""
        follows, reached = self.replayed[index]
        survives = all(position <= fork for born, fork in self.forks.items() if epoch < born <= follows)
        return not survives or (follows >= epoch and reached >= position)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_no_standby_is_used_that_lacks_a_write_and_one_that_lacks_nothing_is(seed: int) -> None:
    world = World(random.Random(seed))
    used = 0
    for _ in range(200):
        world.step()
        for mark, epoch, position in world.written[-5:]:
            needed = world.primary.covers(mark)
            if needed is None:
                continue
            for index, (follows, reached) in enumerate(world.replayed):
                if world.primary.is_seen(needed, Reached(follows, Lsn(reached))):
                    used += 1
                    assert world.is_there(epoch, position, index)
    # And it comes to something: with one more sample, and all replayed, every standby of the epoch is good.
    while world.under_way is not None:
        world.sample()
    for _ in range(3):
        world.sample()
    for mark, _, _ in world.written[-5:]:
        needed = world.primary.covers(mark)
        assert needed is not None
        assert world.primary.is_seen(needed, Reached(world.epoch, Lsn(world.log)))


def test_one_that_left_comes_back_when_it_has_been_well_for_a_while() -> None:
    standing = judge(Standing(), 10, BOUNDS, 0)
    assert standing.is_in
    standing = judge(standing, 1001, BOUNDS, 100)
    assert (standing.is_in, standing.left) == (False, 1)
    standing = judge(standing, 900, BOUNDS, 200)  # within the bound is not enough
    assert not standing.is_in
    standing = judge(standing, 400, BOUNDS, 300)
    assert not standing.is_in
    standing = judge(standing, 600, BOUNDS, 700)  # and it must not waver
    standing = judge(standing, 400, BOUNDS, 900)
    standing = judge(standing, 400, BOUNDS, 1300)
    assert not standing.is_in
    assert judge(standing, 400, BOUNDS, 1400).is_in


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(1, 400), st.one_of(st.none(), st.floats(0, 3000))), max_size=80))
def test_whoever_is_in_was_never_beyond_the_bound_and_changes_are_rare(looks: list[tuple[float, float | None]]) -> None:
    standing, now_ms, came_ms, left_ms = Standing(), 0.0, 0.0, None
    for step_ms, lag_ms in looks:
        now_ms += step_ms
        before, standing = standing, judge(standing, lag_ms, BOUNDS, now_ms)
        if standing.is_in:
            assert lag_ms is not None
            assert lag_ms <= BOUNDS.lag_max_ms
        if before.is_in and not standing.is_in:
            left_ms = now_ms
        if standing.is_in and not before.is_in and left_ms is not None:
            assert now_ms - left_ms >= BOUNDS.back_ms
            came_ms = now_ms
    assert came_ms <= now_ms


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1000)), min_size=1, max_size=6), st.integers(0, 100))
def test_the_least_load_comes_first_and_lag_counts_as_load(found: list[tuple[int, float]], turn: int) -> None:
    choices = [Choice(load, lag_ms) for load, lag_ms in found]
    order = in_order(choices, BOUNDS, turn)
    assert sorted(order) == list(range(len(choices)))
    best = choices[order[0]]
    for other in choices:
        assert not (other.load < best.load and other.lag_ms <= best.lag_ms - 100)


def test_equals_take_turns() -> None:
    choices = [Choice(0, 0.0)] * 3
    assert [in_order(choices, BOUNDS, turn)[0] for turn in range(4)] == [0, 1, 2, 0]
