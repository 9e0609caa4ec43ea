"""The checker against forged histories: each kind of lie is found, and an honest run passes."""

from __future__ import annotations

from array import array

import pytest

from holdfast.drill.checker import Verdict, availability, check, longest_gap_ms, stale_reads, two_leaders
from holdfast.drill.history import Attempt, FreshRead, History, Outcome, Row, Server

FAULT_MS = 1000.0
STOPPED_MS = 3000.0


def payload_of(writer: int, sequence: int) -> str:
    return f"{writer}.{sequence}"


def attempt(sequence: int, outcome: Outcome = Outcome.ACKNOWLEDGED, *, at_ms: float | None = None) -> Attempt:
    end_ms = 10.0 * sequence if at_ms is None else at_ms
    return Attempt(0, sequence, outcome, end_ms - 2, end_ms)


def row(sequence: int, payload: str | None = None) -> Row:
    return Row(0, sequence, payload_of(0, sequence) if payload is None else payload)


def judge(attempts: list[Attempt], rows: list[Row], observed: set[tuple[int, int]] | None = None) -> Verdict:
    history = History(attempts)
    history.observed |= observed or set()
    return check(history, rows, fault_at_ms=FAULT_MS, stopped_at_ms=STOPPED_MS, payload_of=payload_of)


def test_an_honest_run_is_clean() -> None:
    attempts = [
        attempt(1),
        attempt(2, Outcome.ERROR),
        attempt(3, Outcome.UNKNOWN),
        attempt(4, Outcome.UNKNOWN),
        attempt(5, at_ms=2990),
    ]
    verdict = judge(attempts, [row(1), row(3), row(5)], observed={(0, 1), (0, 3)})
    assert verdict.clean
    assert verdict.recovered
    assert (verdict.acknowledged, verdict.errors, verdict.unknown) == (2, 1, 2)
    assert verdict.unknown_committed == ((0, 3),)
    assert verdict.unknown_absent == ((0, 4),)
    assert verdict.seen_then_gone == ()


@pytest.mark.parametrize(
    ("attempts", "rows", "lie", "ids"),
    [
        ([attempt(1), attempt(2)], [row(1)], "lost", ((0, 2),)),
        ([attempt(1)], [row(1), row(1)], "duplicated", ((0, 1),)),
        ([attempt(1, Outcome.UNKNOWN)], [row(1), row(1)], "duplicated", ((0, 1),)),
        ([attempt(1, Outcome.ERROR)], [row(1)], "wrong_errors", ((0, 1),)),
        ([attempt(1)], [row(1), row(7)], "strangers", ((0, 7),)),
        ([attempt(1)], [row(1, "something else")], "altered", ((0, 1),)),
        ([attempt(1)], [], "lost", ((0, 1),)),
    ],
)
def test_each_lie_is_found(
    attempts: list[Attempt], rows: list[Row], lie: str, ids: tuple[tuple[int, int], ...]
) -> None:
    verdict = judge(attempts, rows)
    assert not verdict.clean
    for name in ("lost", "duplicated", "wrong_errors", "strangers", "altered"):
        assert getattr(verdict, name) == (ids if name == lie else ()), name


def test_a_row_that_a_reader_saw_and_that_is_gone_is_named_but_breaks_no_promise() -> None:
    verdict = judge([attempt(1, Outcome.UNKNOWN)], [], observed={(0, 1)})
    assert verdict.seen_then_gone == ((0, 1),)
    assert verdict.clean


def test_the_same_id_of_two_writers_is_no_duplicate() -> None:
    other = Attempt(1, 1, Outcome.ACKNOWLEDGED, 5, 6)
    assert judge([attempt(1), other], [row(1), Row(1, 1, payload_of(1, 1))]).clean


def test_a_history_that_proves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="tried sequence 1 twice"):
        judge([attempt(1), attempt(1)], [row(1)])
    with pytest.raises(ValueError, match="ended before it started"):
        judge([Attempt(0, 1, Outcome.ACKNOWLEDGED, 10, 9)], [row(1)])


def test_failures_in_flight_are_told_from_later_ones() -> None:
    in_flight = Attempt(0, 1, Outcome.UNKNOWN, FAULT_MS - 1, FAULT_MS + 20)
    noticed_late = Attempt(0, 2, Outcome.UNKNOWN, FAULT_MS + 30, FAULT_MS + 40)
    later = Attempt(0, 3, Outcome.ERROR, FAULT_MS + 400, FAULT_MS + 401)
    before = Attempt(0, 4, Outcome.ERROR, 1, 2)
    verdict = judge([in_flight, noticed_late, later, before], [])
    assert (verdict.failed_in_flight, verdict.failed_later) == (2, 1)


@pytest.mark.parametrize(
    ("acknowledged_ms", "expected"),
    [
        ([990, 1400, 1450, 2990], (1540.0, True)),  # a later stall may be the longest
        ([990, 1800, 2000, 2500, 2990], (800.0, True)),  # the first begins at the fault, not at 990
        ([100, 1100, 1200], (1800.0, False)),  # never resumed: until the stop
        ([], (2000.0, False)),
        ([1000], (2000.0, False)),  # an acknowledgement at the very fault is before it
        ([1010, 3005], (1995.0, True)),  # a statement in flight at the stop still counts
    ],
)
def test_the_longest_interval_after_the_fault(acknowledged_ms: list[float], expected: tuple[float, bool]) -> None:
    assert longest_gap_ms(array("d", acknowledged_ms), FAULT_MS, STOPPED_MS) == expected


def test_availability_counts_stalls_only() -> None:
    steady = [float(t) for t in range(0, 1001, 50)]
    assert availability(steady, 1000) == 1.0
    assert availability([*steady, 1500.0, 1550.0], 1550) == pytest.approx(1 - 500 / 1550)
    assert availability([], 1000) == 0.0


def test_a_history_gives_back_what_was_recorded() -> None:
    attempts = [
        Attempt(3, 2**40, Outcome.UNKNOWN, 1.5, 2.5),
        Attempt(4, 1, Outcome.ERROR, 2, 3, "57P03"),
        Attempt(5, 1, Outcome.ACKNOWLEDGED, 2, 2.75),
        Attempt(6, 1, Outcome.ACKNOWLEDGED, 2, 2.25),
    ]
    history = History(attempts)
    assert list(history) == attempts
    assert list(history.acknowledged_at_ms()) == [2.25, 2.75]
    assert history.sqlstates() == {"57P03": 1, "connection lost": 1}


# -- reads that go back in time --------------------------------------------------------------------------------------


def reads(attempts: list[Attempt], answers: list[FreshRead]) -> tuple[FreshRead, ...]:
    history = History(attempts)
    history.fresh_reads += answers
    return stale_reads(history)


ACKNOWLEDGED = [attempt(1), attempt(2), attempt(3)]
"""Their acknowledgements arrived at 10, 20 and 30 ms."""


@pytest.mark.parametrize(
    ("answer", "is_stale"),
    [
        (FreshRead(31, 32, 0, 3), False),
        (FreshRead(31, 32, 0, 4), False),  # a later write that has not been acknowledged yet
        (FreshRead(29, 40, 0, 2), False),  # asked before the third was acknowledged
        (FreshRead(30, 40, 0, 2), False),  # in the very moment
        (FreshRead(31, 32, 0, 2), True),
        (FreshRead(31, 32, 0, 0), True),  # no row at all
        (FreshRead(31, 32, 1, 0), False),  # of a writer that has written nothing
    ],
)
def test_a_read_must_show_what_was_acknowledged_before_it(answer: FreshRead, is_stale: bool) -> None:
    assert reads(ACKNOWLEDGED, [answer]) == ((answer,) if is_stale else ())


def test_a_read_must_show_what_another_read_has_shown() -> None:
    seen_early = FreshRead(21, 22, 0, 3)  # not acknowledged yet, but told to a client
    back_in_time = FreshRead(23, 24, 0, 2)
    at_the_same_time = FreshRead(21.5, 24, 0, 2)
    assert reads(ACKNOWLEDGED, [back_in_time, seen_early, at_the_same_time]) == (back_in_time,)


def test_a_stale_read_convicts() -> None:
    history = History([*ACKNOWLEDGED, attempt(4, at_ms=2990)])
    history.fresh_reads.append(FreshRead(31, 32, 0, 1))
    rows = [row(n) for n in (1, 2, 3, 4)]
    verdict = check(history, rows, fault_at_ms=FAULT_MS, stopped_at_ms=STOPPED_MS, payload_of=payload_of)
    assert (verdict.lost, len(verdict.stale_reads), verdict.clean) == ((), 1, False)


def test_what_an_asynchronous_cluster_forgot_need_not_be_shown_and_all_else_must() -> None:
    history = History([*ACKNOWLEDGED, attempt(4, at_ms=2990)])
    saw_the_lost_one = FreshRead(31, 32, 0, 3)
    honest, stale = FreshRead(40, 41, 0, 2), FreshRead(42, 43, 0, 1)
    history.fresh_reads += [saw_the_lost_one, honest, stale]
    rows = [row(n) for n in (1, 2, 4)]

    def stale_if(may_lose: bool) -> tuple[FreshRead, ...]:
        verdict = check(history, rows, fault_at_ms=FAULT_MS, stopped_at_ms=STOPPED_MS, may_lose=may_lose)
        assert verdict.lost == ((0, 3),)
        return verdict.stale_reads

    assert stale_if(True) == (stale,)
    assert stale_if(False) == (honest, stale)


# -- two leaders ----------------------------------------------------------------------------------------------------

OLD, NEW, OTHER = Server("10.77.1.1:5432", 1), Server("10.77.1.2:5432", 2), Server("10.77.1.3:5432", 2)


def by(server: Server | None, sequence: int, start_ms: float, end_ms: float) -> Attempt:
    return Attempt(0, sequence, Outcome.ACKNOWLEDGED, start_ms, end_ms, server=server)


def test_one_leader_after_the_other_is_right() -> None:
    late_answer = by(OLD, 2, 9, 40)  # sent before the new one had acknowledged anything, heard of after it
    assert two_leaders([by(OLD, 1, 0, 10), late_answer, by(NEW, 3, 20, 30), by(NEW, 4, 41, 42)]) == ()


def test_a_server_that_acknowledges_after_a_later_epoch_did() -> None:
    liar = by(OLD, 3, 31, 35)
    assert two_leaders([by(OLD, 1, 0, 10), by(NEW, 2, 20, 30), liar]) == (liar,)


def test_two_servers_on_one_timeline() -> None:
    liar = by(OTHER, 2, 31, 35)
    assert two_leaders([by(NEW, 1, 20, 30), liar]) == (liar,)


def test_who_did_not_say_who_he_is_proves_nothing() -> None:
    assert two_leaders([by(None, 1, 0, 10), by(NEW, 2, 20, 30), by(None, 3, 40, 50)]) == ()


def test_a_second_leader_convicts() -> None:
    attempts = [by(NEW, 1, 20, 30), by(OLD, 2, 31, 35), by(NEW, 3, 2980, 2990)]
    assert not judge(attempts, [row(1), row(2), row(3)]).clean
