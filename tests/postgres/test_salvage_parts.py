"""What a record wrote and where, what is left of it, when it can be read, and how it is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from holdfast.model.lost import LostTransaction, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.rows import Column, RowChange, Table
from holdfast.postgres.rowwrites import ANYWHERE, Place, RowWrite, tuples_of
from holdfast.postgres.salvage import script
from holdfast.postgres.salvage.steps import STEP_CHANGES_MAX, Change, Changes, net_changes, steps_of

REL = "1663/5/20000"
AT = f"blkref #0: rel {REL} blk 3"


def place(offset: int, block: int = 3, relation: str = REL) -> Place:
    return Place(relation, block, offset)


@pytest.mark.parametrize(
    ("operation", "desc", "expected"),
    [
        ("INSERT", f"INSERT off 2 flags 0x00, {AT}", [(None, place(2))]),
        ("INSERT", f"INSERT+INIT off: 1, flags: 0x00, {AT} FPW", [(None, place(1))]),
        ("DELETE", f"DELETE off 4 flags 0x00 KEYS_UPDATED , {AT}", [(place(4), None)]),
        ("DELETE", f"DELETE xmax: 740, off: 2, infobits: [KEYS_UPDATED], {AT}", [(place(2), None)]),
        ("HOT_UPDATE", f"HOT_UPDATE off 1 xmax 727 flags 0x20 ; new off 5 xmax 0, {AT}", [(place(1), place(5))]),
        (
            "UPDATE",
            f"UPDATE old_xmax: 741, old_off: 1, old_infobits: [], flags: 0x00, new_xmax: 0, new_off: 7, {AT}, "
            f"blkref #1: rel {REL} blk 2",
            [(place(1, block=2), place(7))],
        ),
        ("MULTI_INSERT", f"MULTI_INSERT+INIT 3 tuples flags 0x02, {AT}", [(None, place(n)) for n in (1, 2, 3)]),
        ("MULTI_INSERT", f"MULTI_INSERT 3 tuples flags 0x02, {AT}", [(None, place(ANYWHERE))]),
        (
            "MULTI_INSERT",
            f"MULTI_INSERT ntuples: 2, flags: 0x02, offsets: [6, 9], {AT}",
            [(None, place(6)), (None, place(9))],
        ),
        ("LOCK", f"LOCK off 4: xid 735: flags 0x00 LOCK_ONLY EXCL_LOCK , {AT}", []),
        ("INSERT", f"INSERT off 2 flags 0x00, blkref #0: rel {REL} fork vm blk 3", []),
    ],
)
def test_where_a_record_wrote(operation: str, desc: str, expected: list[tuple[Place | None, Place | None]]) -> None:
    assert list(tuples_of(operation, desc)) == expected


def lost(xid: int = 7, lsn: int = 100, prepared_as: str | None = None, open_as: str | None = None) -> LostTransaction:
    relations = {REL: Tuples(inserted=1)}
    return LostTransaction(xid, Lsn(lsn), "then", prepared_as=prepared_as, open_as=open_as, relations=relations)


def left_of(*writes: tuple[Place | None, Place | None]) -> list[tuple[Place | None, Place | None]]:
    made = [RowWrite(n, 7, old, new) for n, (old, new) in enumerate(writes)]
    return [(c.before, c.after) for c in net_changes(lost(), made).changes]


def test_what_is_left_of_the_writes_of_a_transaction() -> None:
    a, b, c = place(1), place(2), place(3)
    assert left_of((None, a), (a, b)) == [(None, b)]
    assert left_of((None, a), (a, None)) == []
    assert left_of((a, b), (b, c)) == [(a, c)]
    assert left_of((a, b), (b, None)) == [(a, None)]
    assert left_of((a, None), (None, b)) == [(a, None), (None, b)]


def changes(xid: int, lsn: int, before: Place | None, after: Place | None) -> Changes:
    return Changes(lost(xid, lsn), (Change(xid, before, after),))


def test_a_row_is_read_before_somebody_replaces_it() -> None:
    one, two = changes(7, 100, None, place(1)), changes(8, 200, place(1), place(2))
    other = changes(9, 300, place(8), place(9))
    next_record = {Lsn(100): Lsn(110), Lsn(200): Lsn(210), Lsn(300): Lsn(310)}

    def at(first: int) -> list[tuple[int, list[int], bool]]:
        steps = steps_of([one, two, other], next_record, Lsn(first), Lsn(400))
        return [(s.limit, [c.transaction.xid for c in s.transactions], s.has_before) for s in steps]

    assert at(50) == [(110, [7], True), (310, [8, 9], True)]
    # A checkpoint came between: what was before it cannot be seen any more.
    assert at(250) == [(250, [7, 8], False), (310, [9], True)]
    assert at(400) == [(400, [7, 8, 9], False)]


def test_what_changes_the_catalog_is_read_alone() -> None:
    ddl = changes(8, 200, None, place(5, relation="1663/5/1259"))
    all_three = [changes(7, 100, None, place(1)), ddl, changes(9, 300, None, place(2))]
    steps = steps_of(all_three, {}, Lsn(50), Lsn(400))
    assert [[c.transaction.xid for c in s.transactions] for s in steps] == [[7], [8], [9]]


def test_no_more_transactions_are_taken_than_a_step_needs() -> None:
    alike = Change(7, None, place(1))
    taken = 0

    def many() -> Iterator[Changes]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield Changes(lost(7 + number, 100 + number), (alike,) * (STEP_CHANGES_MAX // 4))

    steps = steps_of(many(), {}, Lsn(50), Lsn(400))
    assert [len(next(steps).transactions) for _ in range(3)] == [4, 4, 4]
    assert taken == 13
    assert sum(len(step.transactions) for step in steps) == 88


COLUMNS = (Column("id", "integer"), Column("note", "text"), Column("doc", "json", is_comparable=False))
TABLE = Table("app", "public", 'T "x"', COLUMNS, ("id",))
ROW = {"id": "1", "note": "it's", "doc": None}


def written(change: RowChange, **more: str) -> list[str]:
    transaction = replace(lost(), **more)  # type: ignore[arg-type]
    return list(script.transaction(transaction, [change], []))


NAME = '"public"."T ""x"""'


def test_statements_name_the_row_as_it_was() -> None:
    after = {**ROW, "note": None, "doc": "{}"}
    values = """("id", "note", "doc") VALUES ('1', 'it''s', NULL)"""
    assert written(RowChange(TABLE, None, ROW))[2:] == [
        f"INSERT INTO {NAME} {values} ON CONFLICT DO NOTHING;",
        "COMMIT;",
    ]
    where = """WHERE "id" = '1' AND "note" = 'it''s' AND "doc" IS NULL;"""
    update = f"""UPDATE ONLY {NAME} SET "note" = NULL, "doc" = '{{}}' {where}"""
    assert written(RowChange(TABLE, ROW, after))[2] == update
    assert written(RowChange(TABLE, ROW, None))[2] == f"DELETE FROM ONLY {NAME} {where}"
    assert written(RowChange(TABLE, after, None))[2].endswith("""AND "note" IS NULL AND "doc"::text = '{}';""")


def test_of_a_table_without_a_key_one_row_is_meant() -> None:
    keyless = Table("app", "public", "k", (Column("n", "integer"),))
    inner = """SELECT tableoid, ctid FROM ONLY "public"."k" WHERE "n" = '1' LIMIT 1"""
    assert written(RowChange(keyless, {"n": "1"}, None))[2] == (
        f'DELETE FROM ONLY "public"."k" WHERE (tableoid, ctid) IN ({inner});'
    )


@pytest.mark.parametrize("more", [{"prepared_as": "a\nDROP TABLE t; --"}, {"open_as": "a\nDROP TABLE t; --"}])
def test_no_name_ends_a_comment(more: dict[str, str]) -> None:
    lines = "\n".join(written(RowChange(TABLE, None, ROW), **more)).splitlines()
    assert not [line for line in lines if line.startswith("DROP")]
    assert lines[-1].startswith("ROLLBACK;")
