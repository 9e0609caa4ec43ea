"""The list of what was lost is held against the books: whatever is missing, wrong or invented is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.drill.client import payload_of
from holdfast.drill.history import Outcome
from holdfast.drill.ledger import ENTRIES, PROGRESS, BookedTransaction, Expected
from holdfast.drill.losses import Comparison, books, compare, net
from holdfast.local.lost import SalvagedRow

SCHEMA = "drill_x"
BEFORE, AFTER = {"client": "1", "sequence": "4"}, {"client": "1", "sequence": "5"}
ENTRY = {"id": "9", "client": "1", "note": "new"}
BOOKED = BookedTransaction(
    1,
    5,
    "insert",
    timeline=1,
    xid=70,
    outcome=Outcome.ACKNOWLEDGED,
    changes=[Expected(PROGRESS, BEFORE, AFTER), Expected(ENTRIES, None, ENTRY)],
)
WRITE = {"writer": "0", "sequence": "3", "sent_at": "then", "payload": payload_of(1, 0, 3)}


def row(table: str, xid: int, before: dict[str, str] | None, after: dict[str, str] | None) -> SalvagedRow:
    return SalvagedRow(
        f"app.{SCHEMA}.{table}", xid, "then", None, "insert" if before is None else "update", None,
        None if before is None else dict(before), None if after is None else dict(after),
    )  # fmt: skip


ROWS = [row(PROGRESS, 70, BEFORE, AFTER), row(ENTRIES, 70, None, ENTRY), row("writes", 71, None, WRITE)]


def compared(rows: list[SalvagedRow], listed: set[int], timeline: int = 1) -> Comparison:
    found = {(timeline, xid): [r for r in rows if r.xid == xid] for xid in listed}
    attempts = {(0, 3): payload_of(1, 0, 3)}
    keys = {(timeline, xid) for xid in listed}
    return compare(SCHEMA, found, keys, attempts, [(0, 3)], {BOOKED.key: BOOKED}, [BOOKED.key])


def test_what_is_listed_whole_is_matched() -> None:
    found = compared(ROWS, {70, 71})
    assert (found.listed, found.matched, found.rows, found.wrong, found.strangers) == (2, 2, 3, 0, 0)
    assert (found.unlisted, found.differences) == ([], [])


def test_what_is_not_listed_is_named() -> None:
    found = compared(ROWS, {70})
    assert (found.matched, found.unlisted) == (1, ["write (0, 3)"])
    found = compared(ROWS, {71})
    assert (found.matched, found.unlisted) == (1, ["transaction (1, 70)"])


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (ROWS[1:], 1),
        ([ROWS[0], ROWS[2]], 1),
        ([*ROWS, row(ENTRIES, 70, None, ENTRY)], 1),
        ([ROWS[0], row(ENTRIES, 70, None, {**ENTRY, "note": "old"}), ROWS[2]], 1),
        ([row(PROGRESS, 70, {**BEFORE, "sequence": "3"}, AFTER), *ROWS[1:]], 1),
        ([row("moves", 70, BEFORE, AFTER), *ROWS[1:]], 1),
        ([*ROWS[:2], row("writes", 71, None, {**WRITE, "payload": "another"})], 1),
        ([*ROWS, ROWS[2]], 1),
    ],
)
def test_a_row_that_differs_is_seen(rows: list[SalvagedRow], wrong: int) -> None:
    found = compared(rows, {70, 71})
    assert (found.matched, found.wrong) == (2, wrong)
    assert found.differences


def test_a_transaction_that_nobody_made_is_seen() -> None:
    found = compared([*ROWS, row("writes", 72, None, {**WRITE, "sequence": "99"})], {70, 71, 72})
    assert (found.strangers, found.wrong, found.matched) == (1, 1, 2)


def test_the_same_id_on_another_timeline_is_another_transaction() -> None:
    found = compared(ROWS, {70, 71}, timeline=2)
    assert (found.strangers, found.unlisted) == (1, ["transaction (1, 70)"])


def test_what_is_left_of_a_transaction_counts() -> None:
    changed = {**ENTRY, "note": "changed"}
    assert net([Expected(ENTRIES, None, ENTRY), Expected(ENTRIES, ENTRY, changed)]) == [
        Expected(ENTRIES, None, changed)
    ]
    assert net([Expected(ENTRIES, None, ENTRY), Expected(ENTRIES, ENTRY, None)]) == []
    assert net([Expected(ENTRIES, ENTRY, changed), Expected(ENTRIES, changed, None)]) == [
        Expected(ENTRIES, ENTRY, None)
    ]


def test_books_hold_what_the_last_transaction_left() -> None:
    gone = replace(
        BOOKED, changes=[Expected(PROGRESS, AFTER, {**AFTER, "sequence": "6"}), Expected(ENTRIES, ENTRY, None)]
    )
    assert books([BOOKED])[ENTRIES] == {("9",): ENTRY}
    content = books([BOOKED, gone])
    assert content[ENTRIES] == {}
    assert content[PROGRESS] == {("1",): {"client": "1", "sequence": "6"}}
